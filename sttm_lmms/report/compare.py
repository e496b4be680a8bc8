"""Which run is whose baseline, and what speaks against comparing the two."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sttm_lmms.provenance import Provenance
from sttm_lmms.report.names import model_names, setting_words
from sttm_lmms.report.runs import Run, Sample, TaskRun

# Fields of the provenance that change answers or times for a reason other than the method.
COMPARABLE = {
    "frames": "frame limit",
    "fps": "frames per second",
    "sampling": "frame sampling",
    "video_backend": "video backend",
    "newline": "newline mode",
    "attention": "attention backend",
    "dtype": "dtype",
    "checkpoint_commit": "checkpoint commit",
    "device": "device",
    "reuse": "reuse",
}
# Of these, newline tokens (7% of a frame) and reuse leave the seconds of a whole prefill comparable.
_TIMING = ("frames", "fps", "sampling", "attention", "dtype", "device")
# Newline tokens are part of a baseline's own setting, and neither reuse nor the device changes what is asked.
_ANSWERS = ("frames", "fps", "sampling", "video_backend", "attention", "dtype", "checkpoint_commit")

_Samples = Mapping[Any, Sample]


@dataclass(frozen=True)
class Entry:
    """One task of one run, under the names the table shows."""

    run: Run
    task: TaskRun
    model: str
    method: str
    setting: str

    @property
    def row(self) -> tuple[str, str, str]:
        return self.model, self.method, self.setting


@dataclass(frozen=True)
class Pairing:
    """Two runs question by question.

    Attributes:
        ours, theirs: mean scores over the questions that both answered; None if there are none.
        lost, won: questions that only the baseline, only the run answered right.
        problems: reasons why some or all questions could not be paired.
        refused: True if some pairs did not ask the same thing.
    """

    ours: float | None
    theirs: float | None
    lost: int
    won: int
    problems: tuple[str, ...]
    refused: bool = False


def make_entries(runs: Sequence[Run]) -> list[Entry]:
    """Every task of every run, named. Two checkpoints never share a name, and two runs whose settings were resolved to
    other values (a preset file that was edited between them) never share a setting."""
    models = model_names(_checkpoint(run, task) for run in runs for task in run.tasks)
    entries = [_entry(run, task, models) for run in runs for task in run.tasks]
    resolved: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for entry in entries:
        values = entry.task.provenance.settings if entry.task.provenance else {}
        resolved.setdefault((*entry.row, entry.task.task), {})[json.dumps(dict(values), sort_keys=True)] = dict(values)
    return [replace(entry, setting=_told_apart(entry, resolved)) for entry in entries]


def _told_apart(entry: Entry, resolved: Mapping[tuple[str, ...], Mapping[str, Mapping[str, Any]]]) -> str:
    """The setting, with the values that differ between the runs of this name, in whatever task they do."""
    words = [entry.setting]
    for task in entry.run.tasks:
        variants = resolved.get((*entry.row, task.task), {}).values()
        if len(variants) < 2 or task.provenance is None:
            continue
        own = task.provenance.settings
        differing = sorted({key for values in variants for key in values if values.get(key) != own.get(key)})
        words += [f"{key}={own[key]}" for key in differing if key in own and f"{key}={own[key]}" not in words]
    return ", ".join(words)


def find_baseline(entry: Entry, entries: Sequence[Entry]) -> Entry | None:
    """The run of the same model and task without reduction that differs least (then the newest); None if there is none.

    A baseline is its own baseline.
    """
    if entry.method == "none":
        return entry
    same = [e for e in entries if e.method == "none" and e.model == entry.model and e.task.task == entry.task.task]
    newest_first = sorted(same, key=lambda e: e.run.date, reverse=True)
    return min(newest_first, key=lambda e: len(differences(entry, e)), default=None)


def differences(entry: Entry, baseline: Entry) -> list[str]:
    """What differs from the baseline besides the method, in words; unknown values are no difference."""
    asked = [f"{key} {a} (baseline {b})" for key, a, b in _asked_otherwise(entry, baseline)]
    return asked + [f"{COMPARABLE[field]} {a} (baseline {b})" for field, a, b in _ran_otherwise(entry, baseline)]


def times_comparable(entry: Entry, baseline: Entry) -> bool:
    """False if another device, attention backend or frame limit alone could explain a speed-up."""
    return not any(field in _TIMING for field, _, _ in _ran_otherwise(entry, baseline))


def answers_comparable(entry: Entry, baseline: Entry) -> bool:
    """False if other frames, another way to generate, another backend or checkpoint could explain other answers."""
    if _asked_otherwise(entry, baseline):
        return False
    return not any(field in _ANSWERS for field, _, _ in _ran_otherwise(entry, baseline))


def _ran_otherwise(entry: Entry, baseline: Entry) -> list[tuple[str, object, object]]:
    ours, theirs = entry.task.provenance, baseline.task.provenance
    if ours is None or theirs is None:
        return []
    pairs = [(field, getattr(ours, field), getattr(theirs, field)) for field in COMPARABLE]
    return [(field, a, b) for field, a, b in pairs if a != b and a is not None and b is not None]


def _asked_otherwise(entry: Entry, baseline: Entry) -> list[tuple[str, object, object]]:
    """How replies were generated and what else of the command line decides them, where the two runs differ."""
    ours, theirs = dict(entry.run.options), dict(baseline.run.options)
    if entry.task.generation and baseline.task.generation:
        ours |= entry.task.generation
        theirs |= baseline.task.generation
    pairs = [(key, str(ours.get(key, "not set")), str(theirs.get(key, "not set"))) for key in sorted({*ours, *theirs})]
    return [(key, a, b) for key, a, b in pairs if a != b]


def certificate_problem(entry: Entry) -> str | None:
    """Why this run cannot prove that it did what its row says; None if it can."""
    samples = [s for s in entry.task.samples or () if s.error is None and s.reduced is not None]
    if entry.task.provenance is None and not entry.run.summary.questions:
        return "no certificate: the run does not say what it reduced"
    share = sum(bool(s.reduced) for s in samples) / len(samples) if samples else entry.run.summary.reduced_share
    if entry.method != "none" and share == 0:
        return "no certificate: a reduction was asked for and nothing was reduced"
    if entry.method == "none" and share > 0:
        return f"certificate contradicts the row: tokens were reduced on {share:.0%} of the questions"
    return None


def pair(entry: Entry, baseline: Entry) -> Pairing:
    """Match two runs question by question, refusing pairs whose prompt or target differ."""
    if entry.task.samples is None or baseline.task.samples is None:
        return Pairing(None, None, 0, 0, ("not paired: samples were not logged (--log_samples)",))
    ours, theirs = _matched(entry.task.samples, baseline.task.samples)
    common = sorted(ours.keys() & theirs.keys(), key=str)
    same = [key for key in common if (ours[key].prompt, ours[key].target) == (theirs[key].prompt, theirs[key].target)]
    problems = []
    if len(same) < len(common):
        problems.append(f"prompt or answer key differs from the baseline's on {len(common) - len(same)} questions")
    if alone := len(ours.keys() ^ theirs.keys()):
        problems.append(f"{alone} questions are in only one of the two runs")
    scores = [
        (mine, other)
        for mine, other in ((_answered(ours[key]), _answered(theirs[key])) for key in same)
        if mine is not None and other is not None
    ]
    if not scores:
        problems.append("no question in common with the baseline")
        return Pairing(None, None, 0, 0, tuple(problems), refused=True)
    return Pairing(
        ours=sum(mine for mine, _ in scores) / len(scores),
        theirs=sum(other for _, other in scores) / len(scores),
        lost=sum(mine < other for mine, other in scores),
        won=sum(mine > other for mine, other in scores),
        problems=tuple(problems),
        refused=len(same) < len(common),
    )


def _matched(ours: Sequence[Sample], theirs: Sequence[Sample]) -> tuple[_Samples, _Samples]:
    """Both runs' samples by question id, by video and question id, or by position where no ids tell them apart.

    Ids come first: our tasks order their documents by the number of processes, so positions may differ. The video
    comes second: an answer from a cache may not say which it was about.
    """
    keys: tuple[Callable[[Sample], Any], ...] = (lambda s: s.question, lambda s: (s.video, s.question))
    if all(sample.question is not None for sample in (*ours, *theirs)):
        for key in keys:
            mine, others = ({key(sample): sample for sample in samples} for samples in (ours, theirs))
            if len(mine) == len(ours) and len(others) == len(theirs):
                return mine, others
    return {sample.doc_id: sample for sample in ours}, {sample.doc_id: sample for sample in theirs}


def _answered(sample: Sample) -> float | None:
    return None if sample.error else sample.score


def _entry(run: Run, task: TaskRun, models: Mapping[str, str]) -> Entry:
    args, provenance = dict(run.model_args), task.provenance
    method = provenance.method if provenance is not None else args.get("method", "unknown")
    for name in ("pretrained", "method"):
        args.pop(name, None)
    return Entry(run, task, models[_checkpoint(run, task)], method, _setting(args, run, provenance, method))


def _checkpoint(run: Run, task: TaskRun) -> str:
    stated = task.provenance.checkpoint if task.provenance else None
    return run.model_args.get("pretrained") or stated or run.model


def _setting(args: dict[str, str], run: Run, provenance: Provenance | None, method: str) -> str:
    """What the user asked for, in words."""
    if not args and provenance is not None:
        args = {key: str(value) for key, value in provenance.settings.items()}
    return setting_words({**args, **run.options}) or ("all tokens" if method == "none" else "defaults")
