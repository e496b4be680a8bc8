"""Prompt and score of the toy task, in the shape that lmms-eval's clustered errors ask for."""

from __future__ import annotations


def doc_to_visual(doc: dict) -> list:
    return []


def doc_to_text(doc: dict, lmms_eval_specific_kwargs: dict | None = None) -> str:
    return "\n".join([doc["question"], *doc["options"], "The best answer is:"])


def process_results(doc: dict, results: list[str]) -> dict:
    reply = results[0].strip()[:1]
    score = {
        "score": float(reply == doc["answer"]),
        "videoID": doc["videoID"],
        "duration": doc["duration"],
        "pred": reply,
    }
    return {"accuracy": score}


def mean_score(items: list[dict]) -> float:
    return sum(item["score"] for item in items) / len(items)
