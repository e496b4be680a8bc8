"""One line for each answer in lmms-eval's ``samples_<task>.jsonl`` -> one frame of a task's answers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from sttm_lmms.errors import ResultError
from sttm_lmms.provenance import PROVENANCE_KEY, RUN_KEY, TIMING_KEY, Provenance, RunSummary

# lmms-eval's own tasks log the reply and the truth, not a score; these are the pairs of the six
# benchmarks.
_REPLY_AND_TRUTH = (("pred_answer", "answer"), ("parsed_pred", "answer"), ("pred", "ground_truth"))
_VIDEO_KEYS = ("video_id", "videoID", "video", "q_uid")
SAMPLE_COLUMNS = (
    "doc_id",  # position in the data set, which may depend on the number of processes
    "prompt",
    "target",
    "score",  # share of a right answer, 0 to 1; NaN where the answer is not known
    # The question's own id, where the task logs one. lmms-eval's doc_hash is no help: it hashes
    # None for chat models.
    "question",
    "video",  # what the intervals are clustered by; None if the files do not say
    "input_tokens",  # of the whole prompt, before reduction; NaN here and below: not logged
    "visual_tokens",
    "kept_tokens",  # visual tokens after reduction
    "layer_tokens",  # visual tokens that a decoder layer attends to, mean over the layers
    "reduced",  # whether tokens were reduced; None if not logged
    "ttft",  # seconds of a prefill of the whole prompt; NaN if a prefix was reused, too
    "error",  # why the video could not be used, else None
)
_NUMBERS = ("score", "input_tokens", "visual_tokens", "kept_tokens", "layer_tokens", "ttft")


def read_samples(
    file: Path, metric: str, config: Mapping[str, Any], reported: float | None
) -> tuple[pd.DataFrame, Provenance | None, RunSummary | None]:
    """The answers of one task as a frame with ``SAMPLE_COLUMNS``, what they say about how the model
    ran, and the totals of the run; None where they do not say.

    Args:
        metric: the task's main score; ``config``: the task's, as the results file has it.
        reported: the score in the results file, which tells the filter where a task has several.

    Raises:
        ResultError: a line is broken or contradicts another one; the message names it.
    """
    records = _read_lines(file)
    score_key, cluster_key = config.get("score_key") or "score", config.get("cluster_key")
    rows = [_row(record, metric, score_key, cluster_key, file, n) for n, record in enumerate(records, start=1)]
    samples = pd.DataFrame(rows, columns=list(SAMPLE_COLUMNS))
    samples = samples.astype(dict.fromkeys(SAMPLE_COLUMNS, object)).astype(dict.fromkeys(_NUMBERS, float))
    samples = _of_one_filter(samples, reported, file)
    if metric and not any(metric in record or "bypass" in record for record in records):
        raise ResultError(f"{file}: no line has a score of {metric!r}, which the results file reports")
    totals = next((one[RUN_KEY] for record in records for one in _counts(record)[:1] if RUN_KEY in one), None)
    return samples, _provenance(records, file), None if totals is None else RunSummary.from_dict(totals)


def scale_of(reported: float, scores: pd.Series) -> float | None:
    """What 100% is in a reported score, 1 or 100, if it is the mean of these scores; else None."""
    return next((unit for unit in (1.0, 100.0) if abs(reported / unit - scores.mean()) < 0.0005), None)


def _row(
    record: Mapping[str, Any], metric: str, score_key: str, cluster_key: str | None, file: Path, number: int
) -> dict[str, Any]:
    """One line of a samples file, with the keys of ``SAMPLE_COLUMNS``."""
    missing = [key for key in ("doc_id", "target") if key not in record]
    if missing:
        raise ResultError(f"{file}, line {number}: no {', '.join(map(repr, missing))}; it has {', '.join(record)}")
    value = record.get(metric)  # no metric where only replies were logged (--predict_only)
    details = value if isinstance(value, dict) else {}
    all_counts = _counts(record)
    counts: Mapping[str, Any] = all_counts[0] if all_counts else {}
    named = [details.get(cluster_key) if cluster_key else None, counts.get("video")]
    named += [details.get(key) for key in _VIDEO_KEYS]
    video = next((name for name in named if name not in (None, "") and not isinstance(name, (dict, list))), None)
    question = details.get("question_id", details.get("id"))
    timing = counts.get(TIMING_KEY) or {}
    return {
        "doc_id": record["doc_id"],
        "prompt": str(record.get("input", "")),
        "target": str(record["target"]),
        "score": _score(value, score_key, file, number),
        "question": None if question is None else str(question),
        "video": None if video is None else str(video),
        **{key: counts.get(key) for key in ("input_tokens", "visual_tokens", "kept_tokens", "layer_tokens", "reduced")},
        "ttft": None if counts.get("reused") else timing.get("ttft"),
        "error": next((one["error"] for one in all_counts if one.get("error")), None),
    }


def _score(value: Any, score_key: str, file: Path, number: int) -> float | None:
    score = value
    if isinstance(value, dict):
        score = value.get(score_key)
        for reply, truth in _REPLY_AND_TRUTH:
            if score is None and reply in value and truth in value:
                score = str(value[reply]).strip().lower() == str(value[truth]).strip().lower()
    score = finite(score)
    if score is None:
        return None
    if not 0 <= score <= 1:
        raise ResultError(f"{file}, line {number}: score {score:g} is not in [0, 1]")
    return score


def _counts(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What was logged of each reply: of one, or of each option where options are scored."""
    counts = record.get("token_counts")
    return [one for one in (counts if isinstance(counts, list) else [counts]) if isinstance(one, dict)]


def _provenance(records: list[dict[str, Any]], file: Path) -> Provenance | None:
    """The provenance of the run; every rank states it once and all have to agree."""
    stated = [one[PROVENANCE_KEY] for record in records for one in _counts(record)[:1] if PROVENANCE_KEY in one]
    if not stated:
        return None
    if any(other != stated[0] for other in stated[1:]):
        raise ResultError(
            f"{file}: its ranks disagree on how the model ran; runs of different settings cannot be mixed"
        )
    return Provenance.from_dict(stated[0])


def _of_one_filter(samples: pd.DataFrame, reported: float | None, file: Path) -> pd.DataFrame:
    """Each document once: a task with several filters logs each document as often, one filter after
    the other."""
    repetition = samples.groupby("doc_id").cumcount()
    if not repetition.any():
        return samples
    filters = [one.reset_index(drop=True) for _, one in samples.groupby(repetition)]
    if len({len(one) for one in filters}) == 1:
        for one in filters:
            if reported is not None and scale_of(reported, one["score"]):
                return one
    repeated = samples["doc_id"][repetition > 0].iloc[0]
    raise ResultError(f"{file}: doc_id {repeated} occurs twice; keep the samples of one run and one filter")


def finite(value: Any) -> float | None:
    """A finite number, None for anything else (``"N/A"``, NaN)."""
    if isinstance(value, bool | int | float) and math.isfinite(value):
        return float(value)
    return None


def _read_lines(path: Path) -> list[dict[str, Any]]:
    records = []
    # Not splitlines(): a reply may hold U+2028 and other ends of lines that JSON leaves as they
    # are.
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ResultError(f"{path}, line {number}: not JSON: {error}") from error
        if not isinstance(record, dict):
            raise ResultError(f"{path}, line {number}: holds a {type(record).__name__}, not an object")
        records.append(record)
    return records
