"""Reading what lmms-eval 0.7 writes: ``<date>_results.json`` and ``<date>_samples_<task>.jsonl``
beside it.

The date may be left out, with its underscore: files that are recorded anew keep their names.
Results of any model and task of lmms-eval can be read; what is no share of right answers is kept as
it was reported, in its own unit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from sttm_lmms.errors import ResultError
from sttm_lmms.output import RESULTS, result_files
from sttm_lmms.provenance import PROVENANCE_KEY, RUN_KEY, TIMING_KEY, Provenance, RunSummary

_UNDATED = RESULTS[1:]
# lmms-eval's own tasks log the reply and the truth, not a score; these are the pairs of the six
# benchmarks.
_REPLY_AND_TRUTH = (("pred_answer", "answer"), ("parsed_pred", "answer"), ("pred", "ground_truth"))
_VIDEO_KEYS = ("video_id", "videoID", "video", "q_uid")
# What 100% is in the scores of a task, by the beginning of its name; our own tasks report
# fractions.
_UNITS = {
    **dict.fromkeys(("vnbench", "sttm_", "longvideobench", "egoschema", "nextqa_mc"), 1.0),
    **dict.fromkeys(("videomme", "mlvu"), 100.0),
}
# What decides answers besides the model's arguments, and lmms-eval's default (or None) for it.
_OPTIONS = {
    "num_fewshot": 0,
    "system_instruction": "",
    "apply_chat_template": False,
    "fewshot_as_multiturn": False,
    "repeats": 1,
    "seed": [0, 1234, 1234, 1234],
}


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


@dataclass(frozen=True, eq=False)
class TaskRun:
    """One task of one run.

    Attributes:
        metric: what ``reported`` and the samples' scores are.
        reported, reported_error: score and standard error as they stand in the results file.
        unit: what 100% is in ``reported``: 1 or 100; None where nobody knows, or where it is no
            share of right answers.
        also: further scores of the results file that are no breakdown (``name/part``) of another,
            as they stand there.
        samples: a row for each question, see ``SAMPLE_COLUMNS``; None where they were not logged,
            or cannot be used.
        problem: why the samples cannot be used.
        generation: what replies were generated with, as the task states it.
        totals: of the whole run, as the first answer states them; None in older files.
    """

    task: str
    metric: str
    reported: float | None
    reported_error: float | None
    questions: int
    samples: pd.DataFrame | None
    provenance: Provenance | None
    also: tuple[tuple[str, float], ...] = ()
    unit: float | None = 1.0
    problem: str = ""
    generation: Mapping[str, Any] = field(default_factory=dict)
    totals: RunSummary | None = None

    @property
    def reported_share(self) -> float | None:
        """The reported score as a fraction, where it is known to be a share of right answers."""
        return self.reported / self.unit if self.reported is not None and self.unit else None

    @property
    def answered(self) -> pd.DataFrame:
        """The samples whose video could be read and whose answer is known; none where none were
        logged."""
        samples = pd.DataFrame(columns=list(SAMPLE_COLUMNS)) if self.samples is None else self.samples
        return samples[samples["error"].isna() & samples["score"].notna()]


@dataclass(frozen=True, eq=False)
class Run:
    """One results file.

    Attributes:
        options: what else was asked for on the command line and decides the answers,
            ``--gen_kwargs`` one by one.
        problem: why the file could not be read; then there are no tasks.
    """

    path: Path
    date: str = ""
    model: str = ""
    model_args: Mapping[str, str] = field(default_factory=dict)
    limit: float | None = None
    summary: RunSummary = field(default_factory=RunSummary)
    tasks: tuple[TaskRun, ...] = field(default=())
    options: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""


def load_runs(paths: Iterable[str | Path]) -> list[Run]:
    """All runs below the given folders (or results files), ordered by path.

    A file that cannot be read is in the list with its ``problem``; a task whose samples cannot be
    used, with its own.

    Raises:
        ResultError: nothing found, or nothing of it can be read; the message names the file.
    """
    files: dict[Path, Path] = {}
    for path in map(Path, paths):
        found = [path] if path.is_file() else result_files(path)
        if not found:
            raise ResultError(
                f"{path}: no *{RESULTS} in it; give the folder that lmms-eval got as --output_path, or a results file"
            )
        files.update((file.resolve(), file) for file in found)
    runs = [_load(file) for file in sorted(files.values(), key=lambda file: file.as_posix())]
    if all(run.problem for run in runs):
        raise ResultError(runs[0].problem)
    return runs


def _load(path: Path) -> Run:
    try:
        return load_run(path)
    except ResultError as error:
        return Run(path, problem=str(error))


def load_run(path: Path) -> Run:
    """One results file with the samples beside it; ``TaskRun.problem`` says why samples cannot be
    used.

    Raises:
        ResultError: the results file is broken; the message names it.
    """
    content = _read_json(path)
    for key in ("results", "configs", "config"):
        if not isinstance(content.get(key), dict):
            raise ResultError(f"{path}: has no {key!r} object; is it a results file of lmms-eval 0.7?")
    config = content["config"]
    stem = path.name.removesuffix(_UNDATED)
    tasks = tuple(
        _load_task(path, path.with_name(f"{stem}samples_{task}.jsonl"), task, content)
        for task in sorted(content["configs"])
        if isinstance(content["results"].get(task), dict) and isinstance(content["configs"][task], dict)
    )
    return Run(
        path=path,
        date=str(content.get("date", stem.rstrip("_"))),
        model=str(config.get("model", "")),
        model_args=_arguments(config.get("model_args")),
        limit=_number(config.get("limit")),
        # The results file alone has the numbers that lmms-eval prints.
        summary=next(
            (task.totals for task in tasks if task.totals is not None),
            RunSummary.from_throughput(content.get("throughput") or {}),
        ),
        tasks=tasks,
        options=_options(config),
    )


def _load_task(path: Path, sample_file: Path, task: str, content: Mapping[str, Any]) -> TaskRun:
    config, results = content["configs"][task], content["results"][task]
    metrics = [str(entry["metric"]) for entry in config.get("metric_list") or [] if "metric" in entry]
    numbers = {key: _number(value) for key, value in results.items() if key.split(",")[0] != "bypass"}
    reported: dict[str, float] = {}  # of several filters, the first one's
    for key, value in numbers.items():
        if value is not None:
            reported.setdefault(key.split(",")[0], value)
    metric = next((name for name in metrics if name in reported), metrics[0] if metrics else "")
    samples, provenance, totals, problem = None, None, None, ""
    if sample_file.is_file():
        try:
            samples, provenance, totals = _load_samples(sample_file, metric, config, reported.get(metric))
        except ResultError as error:  # the scores of the results file are good without them
            problem = str(error)
    errors = (f"{metric}_stderr_clustered", f"{metric}_stderr_clt", f"{metric}_stderr")
    size = (content.get("n-samples") or {}).get(task) or {}
    return TaskRun(
        task=task,
        metric=metric,
        reported=reported.get(metric),
        reported_error=next((reported[key] for key in errors if key in reported), None),
        questions=len(samples) if samples is not None else int(_number(size.get("effective")) or 0),
        samples=samples,
        provenance=provenance,
        also=tuple(
            (name, value)
            for name, value in sorted(reported.items())
            if name != metric and "/" not in name and "_stderr" not in name
        ),
        unit=_unit(task, reported.get(metric), samples),
        problem=problem,
        generation=config.get("generation_kwargs") or {},
        totals=totals,
    )


def _load_samples(
    file: Path, metric: str, config: Mapping[str, Any], reported: float | None
) -> tuple[pd.DataFrame, Provenance | None, RunSummary | None]:
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


def _unit(task: str, reported: float | None, samples: pd.DataFrame | None) -> float | None:
    """What 100% is in a reported score: as the samples show it, else as the task is known to report
    it."""
    if reported is None:
        return None
    if samples is not None:
        scores = samples["score"].dropna()
        if scores.empty:
            return None
        for unit in (1.0, 100.0):
            if abs(reported / unit - scores.mean()) < 0.0005:
                return unit
    known = next((unit for name, unit in _UNITS.items() if task.startswith(name)), None)
    return known if known and 0 <= reported <= known else None


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
    score = _number(score)
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
            if _unit("", reported, one) is not None:
                return one
    repeated = samples["doc_id"][repetition > 0].iloc[0]
    raise ResultError(f"{file}: doc_id {repeated} occurs twice; keep the samples of one run and one filter")


def _number(value: Any) -> float | None:
    """A finite number, None for anything else (``"N/A"``, NaN)."""
    if isinstance(value, bool | int | float) and math.isfinite(value):
        return float(value)
    return None


def _arguments(given: Any) -> dict[str, str]:
    if isinstance(given, dict):
        return {str(key): str(value) for key, value in given.items()}
    pairs = (part.split("=", 1) for part in str(given or "").split(",") if "=" in part)
    return {key.strip(): value.strip() for key, value in pairs}


def _options(config: Mapping[str, Any]) -> dict[str, str]:
    """What was asked for besides the model's arguments and is not lmms-eval's default."""
    command = config.get("resolved_cli_args") or {}
    asked = {name: str(command[name]) for name, usual in _OPTIONS.items() if command.get(name) not in (None, usual)}
    return _arguments(config.get("gen_kwargs")) | asked


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ResultError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ResultError(
            f"{path}: holds a {type(content).__name__}, not an object; is it a results file of lmms-eval?"
        )
    return content


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
