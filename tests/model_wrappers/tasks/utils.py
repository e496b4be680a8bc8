"""Mini-VNBench as a task of choices and as a task of two rounds."""

import os
from pathlib import Path

BENCHMARK = Path(os.environ["STTM_DATA_ROOT"]) / "vnbench"
dataset_kwargs = {"data_files": {"test": str(next((BENCHMARK / "annotations").iterdir()))}}


def doc_to_visual(doc):
    return [str(BENCHMARK / "videos" / f"{doc['videoID']}.mp4")]


def doc_to_choice(doc):
    return list(doc["options"])


def doc_to_target(doc):
    return "ABCD".index(doc["answer"])


def rounds_doc_to_text(
    doc, lmms_eval_specific_kwargs=None, previous_output=None, round_idx=None, previous_round_info=None
):
    if round_idx is None:
        return doc["question"]
    if round_idx == 2:
        return None, None, True, previous_output, None
    return doc_to_visual(doc), f"You said {previous_output[-1]!r}. Why?", False, previous_output, None


def rounds_process_results(doc, results):
    answers = results[0] if isinstance(results[0], (list, tuple)) else results
    return {"rounds": len(answers)}


def stock_process_results(doc, results):
    return {"accuracy": float(results[0].startswith(doc["answer"]))}
