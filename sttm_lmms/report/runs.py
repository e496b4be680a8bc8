"""Reading what lmms-eval 0.7 writes: ``<date>_results.json`` and ``<date>_samples_<task>.jsonl``
beside it.

The date may be left out, with its underscore: files that are recorded anew keep their names.
Results of any model and task of lmms-eval can be read; what is no share of right answers is kept as
it was reported, in its own unit.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from sttm_lmms.errors import ResultError
from sttm_lmms.output import RESULTS, result_files
from sttm_lmms.provenance import Provenance, RunSummary
from sttm_lmms.report.samples import SAMPLE_COLUMNS, finite, read_samples, scale_of

_UNDATED = RESULTS[1:]
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
        limit=finite(config.get("limit")),
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
    numbers = {key: finite(value) for key, value in results.items() if key.split(",")[0] != "bypass"}
    reported: dict[str, float] = {}  # of several filters, the first one's
    for key, value in numbers.items():
        if value is not None:
            reported.setdefault(key.split(",")[0], value)
    metric = next((name for name in metrics if name in reported), metrics[0] if metrics else "")
    samples, provenance, totals, problem = None, None, None, ""
    if sample_file.is_file():
        try:
            samples, provenance, totals = read_samples(sample_file, metric, config, reported.get(metric))
        except ResultError as error:  # the scores of the results file are good without them
            problem = str(error)
    errors = (f"{metric}_stderr_clustered", f"{metric}_stderr_clt", f"{metric}_stderr")
    size = (content.get("n-samples") or {}).get(task) or {}
    return TaskRun(
        task=task,
        metric=metric,
        reported=reported.get(metric),
        reported_error=next((reported[key] for key in errors if key in reported), None),
        questions=len(samples) if samples is not None else int(finite(size.get("effective")) or 0),
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


def _unit(task: str, reported: float | None, samples: pd.DataFrame | None) -> float | None:
    """What 100% is in a reported score: as the samples show it, else as the task is known to report
    it."""
    if reported is None or (samples is not None and samples["score"].isna().all()):
        return None
    if samples is not None and (shown := scale_of(reported, samples["score"])):
        return shown
    known = next((unit for name, unit in _UNITS.items() if task.startswith(name)), None)
    return known if known and 0 <= reported <= known else None


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
