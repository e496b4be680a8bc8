"""Which run is whose baseline, and what speaks against comparing the two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sttm_lmms.provenance import Provenance
from sttm_lmms.report.names import model_name, setting_words
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
    """Every task of every run, named."""
    return [_entry(run, task) for run in runs for task in run.tasks]


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
    return [f"{COMPARABLE[field]} {a} (baseline {b})" for field, a, b in _differing(entry, baseline)]


def times_comparable(entry: Entry, baseline: Entry) -> bool:
    """False if another device, attention backend or frame limit alone could explain a speed-up."""
    return not any(field in _TIMING for field, _, _ in _differing(entry, baseline))


def answers_comparable(entry: Entry, baseline: Entry) -> bool:
    """False if other frames, another backend or checkpoint alone could explain other answers."""
    return not any(field in _ANSWERS for field, _, _ in _differing(entry, baseline))


def _differing(entry: Entry, baseline: Entry) -> list[tuple[str, object, object]]:
    ours, theirs = entry.task.provenance, baseline.task.provenance
    if ours is None or theirs is None:
        return []
    pairs = [(field, getattr(ours, field), getattr(theirs, field)) for field in COMPARABLE]
    return [(field, a, b) for field, a, b in pairs if a != b and a is not None and b is not None]


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
    """Both runs' samples by question id, or by position where ids are missing or not unique.

    Ids come first: our tasks order their documents by the number of processes, so positions may differ.
    """
    by_id = tuple({(sample.video, sample.question): sample for sample in samples} for samples in (ours, theirs))
    unique = len(by_id[0]) == len(ours) and len(by_id[1]) == len(theirs)
    if unique and all(sample.question is not None for sample in (*ours, *theirs)):
        return by_id[0], by_id[1]
    return {sample.doc_id: sample for sample in ours}, {sample.doc_id: sample for sample in theirs}


def _answered(sample: Sample) -> float | None:
    return None if sample.error else sample.score


def _entry(run: Run, task: TaskRun) -> Entry:
    args, provenance = dict(run.model_args), task.provenance
    checkpoint = args.pop("pretrained", None) or (provenance.checkpoint if provenance else None) or run.model
    method = provenance.method if provenance is not None else args.get("method", "unknown")
    args.pop("method", None)
    return Entry(run, task, model_name(checkpoint), method, _setting(args, provenance, method))


def _setting(args: dict[str, str], provenance: Provenance | None, method: str) -> str:
    """What the user asked for, in words."""
    if not args and provenance is not None:
        args = {key: str(value) for key, value in provenance.settings.items()}
    return setting_words(args) or ("all tokens" if method == "none" else "defaults")
