"""Reading what lmms-eval 0.7 writes: ``<date>_results.json`` and ``<date>_samples_<task>.jsonl`` beside it.

The date may be left out, with its underscore: files that are recorded anew keep their names.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sttm_lmms.errors import ResultError
from sttm_lmms.output import RESULTS, result_files
from sttm_lmms.provenance import PROVENANCE_KEY, TIMING_KEY, Provenance, RunSummary

_UNDATED = RESULTS[1:]
# lmms-eval's own tasks log the reply and the truth, not a score; these are the pairs of the six benchmarks.
_REPLY_AND_TRUTH = (("pred_answer", "answer"), ("parsed_pred", "answer"), ("pred", "ground_truth"))


@dataclass(frozen=True)
class Sample:
    """One question of one task.

    Attributes:
        doc_id: position in the data set, which may depend on the number of processes.
        question: id of the question where the task logs one. (lmms-eval's ``doc_hash`` is no help: it is the same for
            all documents of a chat model, because it hashes None.)
        score: 1 or 0; None where the answer is not known.
        video: what the intervals are clustered by; None if the files do not say.
        input_tokens: of the whole prompt, before reduction; None if not logged.
        visual_tokens, kept_tokens: before and after reduction; None if not logged.
        layer_tokens: visual tokens that a decoder layer attends to, mean over the layers; None if not logged.
        reduced: whether tokens were reduced; None if not logged.
        ttft: seconds of a prefill of the whole prompt; None if a prefix was reused or nothing was logged.
        error: why the video could not be used.
    """

    doc_id: int
    prompt: str
    target: str
    score: float | None
    question: str | None = None
    video: str | None = None
    input_tokens: int | None = None
    visual_tokens: int | None = None
    kept_tokens: int | None = None
    layer_tokens: float | None = None
    reduced: bool | None = None
    ttft: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class TaskRun:
    """One task of one run.

    Attributes:
        metric: what ``reported`` and the samples' scores are.
        reported, reported_error: score and standard error of the results file, as fractions.
        also: further scores of the results file that are no breakdown (``name/part``) of another, as fractions.
        samples: None where they were not logged.
    """

    task: str
    metric: str
    reported: float | None
    reported_error: float | None
    questions: int
    samples: tuple[Sample, ...] | None
    provenance: Provenance | None
    also: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Run:
    """One results file."""

    path: Path
    date: str
    model: str
    model_args: Mapping[str, str]
    limit: float | None
    summary: RunSummary
    tasks: tuple[TaskRun, ...] = field(default=())


def load_runs(paths: Iterable[str | Path]) -> list[Run]:
    """All runs below the given folders (or results files), ordered by path.

    Raises:
        ResultError: nothing found, or a file is broken; the message names it.
    """
    files: dict[Path, Path] = {}
    for path in map(Path, paths):
        found = [path] if path.is_file() else result_files(path)
        if not found:
            raise ResultError(
                f"{path}: no *{RESULTS} in it; give the folder that lmms-eval got as --output_path, or a results file"
            )
        files.update((file.resolve(), file) for file in found)
    return [load_run(file) for file in sorted(files.values(), key=lambda file: file.as_posix())]


def load_run(path: Path) -> Run:
    """One results file with the samples beside it."""
    content = _read_json(path)
    for key in ("results", "configs", "config"):
        if not isinstance(content.get(key), dict):
            raise ResultError(f"{path}: has no {key!r} object; is it a results file of lmms-eval 0.7?")
    config = content["config"]
    stem = path.name.removesuffix(_UNDATED)
    tasks = tuple(
        _load_task(path, path.with_name(f"{stem}samples_{task}.jsonl"), task, content)
        for task in sorted(content["configs"])
        if task in content["results"]
    )
    return Run(
        path=path,
        date=str(content.get("date", stem.rstrip("_"))),
        model=str(config.get("model", "")),
        model_args=_arguments(config.get("model_args")),
        limit=config.get("limit"),
        summary=RunSummary.from_throughput(content.get("throughput", {})),
        tasks=tasks,
    )


def _load_task(path: Path, sample_file: Path, task: str, content: Mapping[str, Any]) -> TaskRun:
    config, results = content["configs"][task], content["results"][task]
    metrics = [entry["metric"] for entry in config.get("metric_list") or []]
    reported = {key.split(",")[0]: value for key, value in results.items() if isinstance(value, (int, float))}
    metric = next((name for name in metrics if name in reported), metrics[0] if metrics else "")
    records = _read_lines(sample_file) if sample_file.is_file() else None
    samples = None
    if records is not None:
        samples = tuple(
            _sample(record, metric, config.get("score_key") or "score", config.get("cluster_key"), sample_file, number)
            for number, record in enumerate(records, start=1)
        )
        _refuse_repeats(samples, sample_file)
        if metric in reported and all(sample.score is None for sample in samples):
            raise ResultError(f"{sample_file}: no line has a score of {metric!r}, which {path.name} reports")
    errors = (f"{metric}_stderr_clustered", f"{metric}_stderr_clt", f"{metric}_stderr")
    size = content.get("n-samples", {}).get(task, {})
    return TaskRun(
        task=task,
        metric=metric,
        reported=_fraction(reported[metric]) if metric in reported else None,
        reported_error=next((float(reported[key]) for key in errors if key in reported), None),
        questions=len(samples) if samples is not None else int(size.get("effective") or 0),
        samples=samples,
        provenance=_provenance(records, sample_file) if records is not None else None,
        also=tuple(
            (name, _fraction(value))
            for name, value in sorted(reported.items())
            if name != metric and "/" not in name and "_stderr" not in name
        ),
    )


def _sample(
    record: Mapping[str, Any], metric: str, score_key: str, cluster_key: str | None, file: Path, number: int
) -> Sample:
    missing = [key for key in ("doc_id", "target") if key not in record]
    if missing:
        raise ResultError(f"{file}, line {number}: no {', '.join(map(repr, missing))}; it has {', '.join(record)}")
    value = record.get(metric)
    details = value if isinstance(value, dict) else {}
    counts = _counts(record)
    timing = counts.get(TIMING_KEY) or {}
    cluster = details.get(cluster_key) if cluster_key else None
    video = cluster if cluster is not None else counts.get("video")
    question = details.get("question_id", details.get("id"))
    return Sample(
        doc_id=record["doc_id"],
        prompt=str(record.get("input", "")),
        target=str(record["target"]),
        score=_score(value, score_key, file, number),
        question=str(question) if question is not None else None,
        video=str(video) if video not in (None, "") else None,
        input_tokens=counts.get("input_tokens"),
        visual_tokens=counts.get("visual_tokens"),
        kept_tokens=counts.get("kept_tokens"),
        layer_tokens=counts.get("layer_tokens"),
        reduced=counts.get("reduced"),
        ttft=None if counts.get("reused") else timing.get("ttft"),
        error=counts.get("error"),
    )


def _score(value: Any, score_key: str, file: Path, number: int) -> float | None:
    score = value
    if isinstance(value, dict):
        score = value.get(score_key)
        for reply, truth in _REPLY_AND_TRUTH:
            if score is None and reply in value and truth in value:
                score = str(value[reply]).strip().lower() == str(value[truth]).strip().lower()
    if not isinstance(score, (int, float)):
        return None
    if not 0 <= score <= 1:
        raise ResultError(f"{file}, line {number}: score {score!r} is not in [0, 1]")
    return float(score)


def _counts(record: Mapping[str, Any]) -> Mapping[str, Any]:
    counts = record.get("token_counts")
    first = counts[0] if isinstance(counts, list) and counts else counts
    return first if isinstance(first, dict) else {}


def _provenance(records: list[dict[str, Any]], file: Path) -> Provenance | None:
    """The provenance of the run; every rank states it once and all have to agree."""
    stated = [counts[PROVENANCE_KEY] for counts in map(_counts, records) if PROVENANCE_KEY in counts]
    if not stated:
        return None
    if any(other != stated[0] for other in stated[1:]):
        raise ResultError(
            f"{file}: its ranks disagree on how the model ran; runs of different settings cannot be mixed"
        )
    return Provenance.from_dict(stated[0])


def _refuse_repeats(samples: tuple[Sample, ...], file: Path) -> None:
    seen: set[int] = set()
    for sample in samples:
        if sample.doc_id in seen:
            raise ResultError(
                f"{file}: doc_id {sample.doc_id} occurs twice; keep the samples of one run and one filter"
            )
        seen.add(sample.doc_id)


def _fraction(value: float) -> float:
    # lmms-eval's tasks disagree: videomme reports percent, nextqa a fraction.
    return value / 100 if value > 1 else float(value)


def _arguments(given: Any) -> dict[str, str]:
    if isinstance(given, dict):
        return {str(key): str(value) for key, value in given.items()}
    pairs = (part.split("=", 1) for part in str(given or "").split(",") if "=" in part)
    return {key.strip(): value.strip() for key, value in pairs}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ResultError(
            f"{path}: holds a {type(content).__name__}, not an object; is it a results file of lmms-eval?"
        )
    return content


def _read_lines(path: Path) -> list[dict[str, Any]]:
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ResultError(f"{path}, line {number}: not JSON: {error}") from error
        if not isinstance(record, dict):
            raise ResultError(f"{path}, line {number}: holds a {type(record).__name__}, not an object")
        records.append(record)
    return records
