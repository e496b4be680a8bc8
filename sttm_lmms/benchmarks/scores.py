"""Scores of one answer and of many, as plain functions of lists of scored answers.

A scored answer is a dict with ``score`` (1.0 or 0.0), ``video_id`` and the categories of its
question. Unanswered questions, and questions whose video failed (their reply is ""), count as
wrong.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sttm_lmms.benchmarks.answers import parse_answer

Item = Mapping[str, Any]
VNBENCH_KINDS = {"ret": "retrieval", "ord": "ordering", "cnt": "counting"}


def score_reply(reply: str, letters: str, answer: str) -> tuple[str, float]:
    """The letter read from a reply ("" for none) and 1.0 if it is ``answer``, else 0.0."""
    prediction = parse_answer(reply, letters)
    return prediction, float(bool(prediction) and prediction == answer)


def accuracy(items: Sequence[Item]) -> float | None:
    """Mean of the scores, in [0, 1]; ``None`` for no items, here and below."""
    return _mean(item["score"] for item in items)


def task_mean(items: Sequence[Item]) -> float | None:
    """Mean over the task types of the accuracy within each: MLVU's own score (M-Avg), in [0, 1]."""
    return _mean(_mean(item["correct"] for item in group) for group in _group(items, "task_type"))


def circular(items: Sequence[Item]) -> float | None:
    """VNBench's official score: the mean over its kinds (retrieval, ordering, counting) of
    :func:`circular_kind`."""
    return _mean(circular_kind(group) for group in _group(items, "kind"))


def circular_kind(items: Sequence[Item]) -> float | None:
    """Share of samples all of whose tries are right, in [0, 1].

    Each item holds ``video_id`` (the sample), ``correct`` and ``tries`` (how many tries the
    annotation file has for the sample). A sample of which some tries were not run (``--limit``) is
    left out.
    """
    complete = [tries for tries in _group(items, "video_id") if len(tries) == tries[0]["tries"]]
    return _mean(float(all(item["correct"] for item in tries)) for tries in complete)


def vnbench_kind(task_type: str) -> str:
    """``"retrieval"``, ``"ordering"`` or ``"counting"`` for a task type such as ``"cnt_edit1"``,
    else the type."""
    return VNBENCH_KINDS.get(task_type.split("_")[0], task_type)


def _group(items: Iterable[Item], key: str) -> list[list[Item]]:
    groups: dict[Any, list[Item]] = defaultdict(list)
    for item in items:
        groups[item[key]].append(item)
    return list(groups.values())


def _mean(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else None
