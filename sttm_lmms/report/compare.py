"""The tasks of all runs by name, which run is whose baseline, and what speaks against comparing two
of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from sttm_lmms.provenance import RunSummary
from sttm_lmms.report.names import model_names, setting_words
from sttm_lmms.report.runs import Run, TaskRun
from sttm_lmms.report.stats import mcnemar_exact

# Field of the provenance -> its name, and whether it alone may explain other answers and other
# times. Newline tokens are part of a baseline's own setting and 7% of a frame; neither reuse nor
# the device changes what is asked, and reuse not the seconds of a whole prefill.
COMPARABLE = {
    "frames": ("frame limit", True, True),
    "fps": ("frames per second", True, True),
    "sampling": ("frame sampling", True, True),
    "video_backend": ("video backend", True, False),
    "newline": ("newline mode", False, False),
    "attention": ("attention backend", True, True),
    "dtype": ("dtype", True, True),
    "checkpoint_commit": ("checkpoint commit", True, False),
    "device": ("device", False, True),
    "reuse": ("reuse", False, False),
}


class Difference(NamedTuple):
    """Something else than the method in which a run differs from its baseline, in words.

    Attributes:
        answers, times: whether it alone may explain other answers, and other times.
    """

    words: str
    answers: bool
    times: bool


class Pairs(NamedTuple):
    """Two runs question by question.

    Attributes:
        scores: columns ``ours`` and ``theirs``, a row for each question that both answered.
        same_questions: whether none had another prompt or target.
        problems: why there are not more rows, in words.
    """

    scores: pd.DataFrame
    same_questions: bool
    problems: list[str]

    @property
    def comparable(self) -> bool:
        return self.same_questions and not self.scores.empty

    @property
    def lost(self) -> int:
        """Questions on which the other run scored higher."""
        return int((self.scores["ours"] < self.scores["theirs"]).sum())

    @property
    def won(self) -> int:
        return int((self.scores["ours"] > self.scores["theirs"]).sum())

    @property
    def p(self) -> float:
        return mcnemar_exact(self.lost, self.won)


class NamedRun(NamedTuple):
    """One task of one run, under the names that a table shows."""

    model: str
    method: str
    setting: str
    run: Run
    task: TaskRun

    @property
    def row(self) -> tuple[str, str, str, str]:
        """What the results of equal runs share."""
        return self.model, self.method, self.setting, self.task.task


def name_runs(runs: Sequence[Run]) -> list[NamedRun]:
    """Every task of every run, named, the oldest run first.

    Two checkpoints never share a name, and two runs whose settings were resolved to other values (a
    preset file that was edited between them) never share a setting.
    """
    oldest_first = sorted(runs, key=lambda run: (run.date, run.path.as_posix()))
    pairs = [(run, task) for run in oldest_first for task in run.tasks]
    models = model_names(_checkpoint(run, task) for run, task in pairs)
    named = [
        NamedRun(models[_checkpoint(run, task)], _method(run, task), _setting(run, task), run, task)
        for run, task in pairs
    ]
    resolved: dict[tuple[str, ...], dict[str, Mapping[str, Any]]] = {}
    for one in named:
        values = _resolved(one.task)
        resolved.setdefault(one.row, {})[json.dumps(values, sort_keys=True)] = values
    return [one._replace(setting=_distinct_setting(one, resolved)) for one in named]


def find_baseline(one: NamedRun, all_runs: Sequence[NamedRun]) -> NamedRun | None:
    """The run of the same model and task without reduction that differs least (then the newest);
    None if there is none.

    A baseline is its own baseline.
    """
    if one.method == "none":
        return one
    same = [b for b in all_runs if (b.method, b.model, b.task.task) == ("none", one.model, one.task.task)]
    newest_first = sorted(same, key=lambda b: b.run.date, reverse=True)
    return min(newest_first, key=lambda b: (len(differences(one, b)), len(_other_arguments(one, b))), default=None)


def _other_arguments(one: NamedRun, baseline: NamedRun) -> set[str]:
    ours, theirs = one.run.model_args, baseline.run.model_args
    return {name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name)}


def differences(one: NamedRun, baseline: NamedRun) -> list[Difference]:
    """What differs from the baseline besides the method; unknown values are no difference."""
    # How replies were generated, and what else of the command line decides them.
    ours, theirs = dict(one.run.options), dict(baseline.run.options)
    if one.task.generation and baseline.task.generation:
        ours |= one.task.generation
        theirs |= baseline.task.generation
    asked = [(key, str(ours.get(key, "not set")), str(theirs.get(key, "not set"))) for key in sorted({*ours, *theirs})]
    found = [Difference(f"{key} {a} (baseline {b})", True, False) for key, a, b in asked if a != b]
    ran, other = one.task.provenance, baseline.task.provenance
    for field, (name, answers, times) in COMPARABLE.items() if ran and other else ():
        a, b = getattr(ran, field), getattr(other, field)
        if a != b and a is not None and b is not None:
            found.append(Difference(f"{name} {a} (baseline {b})", answers, times))
    return found


def certificate_problem(one: NamedRun) -> str | None:
    """Why this run cannot prove that it did what its row says; None if it can."""
    summary, samples = one.run.summary, one.task.samples
    if one.task.provenance is None and summary == RunSummary():
        return "no certificate: the run does not say what it reduced"
    said = pd.Series(dtype=object) if samples is None else samples["reduced"][samples["error"].isna()].dropna()
    share = summary.reduced_share if said.empty else said.astype(bool).mean()
    if one.method != "none" and share == 0:
        return "no certificate: a reduction was asked for and nothing was reduced"
    if one.method == "none" and share > 0:
        return f"certificate contradicts the row: tokens were reduced on {share:.0%} of the questions"
    return None


def pair(ours: pd.DataFrame | None, theirs: pd.DataFrame | None) -> Pairs:
    """Join the samples of two runs; questions whose prompt or target differ are left out."""
    if ours is None or theirs is None:
        none = pd.DataFrame(columns=["ours", "theirs"])
        return Pairs(none, True, ["not paired: samples were not logged (--log_samples)"])
    both = ours.merge(theirs, how="outer", on=_key(ours, theirs), suffixes=("", "_theirs"), indicator="found")
    common = both[both["found"] == "both"]
    same = (common["prompt"] == common["prompt_theirs"]) & (common["target"] == common["target_theirs"])
    problems = []
    if others := int((~same).sum()):
        problems.append(f"prompt or answer key differs from the baseline's on {others} questions")
    if alone := len(both) - len(common):
        problems.append(f"{alone} questions are in only one of the two runs")
    read = common[same & common["error"].isna() & common["error_theirs"].isna()]
    scores = read[["score", "score_theirs"]].dropna().set_axis(["ours", "theirs"], axis=1)
    if scores.empty:
        problems.append("no question in common with the baseline")
    return Pairs(scores, bool(same.all()), problems)


def _key(ours: pd.DataFrame, theirs: pd.DataFrame) -> list[str]:
    """Question id, video and question id, or position: the first that tells all questions apart.

    Ids come first: positions may depend on the number of processes. The video comes second: an
    answer from a cache may not say which it was about.
    """
    both = (ours, theirs)
    if all(samples["question"].notna().all() for samples in both):
        for key in (["question"], ["video", "question"]):
            if not any(samples.duplicated(key).any() for samples in both):
                return key
    return ["doc_id"]


def _checkpoint(run: Run, task: TaskRun) -> str:
    stated = task.provenance.checkpoint if task.provenance else None
    return run.model_args.get("pretrained") or stated or run.model


def _method(run: Run, task: TaskRun) -> str:
    return task.provenance.method if task.provenance else run.model_args.get("method", "unknown")


def _resolved(task: TaskRun) -> dict[str, Any]:
    return dict(task.provenance.settings) if task.provenance else {}


def _setting(run: Run, task: TaskRun) -> str:
    """What the user asked for, in words."""
    args = {key: value for key, value in run.model_args.items() if key not in ("pretrained", "method")}
    args = args or {key: str(value) for key, value in _resolved(task).items()}
    return setting_words({**args, **run.options}) or ("all tokens" if _method(run, task) == "none" else "defaults")


def _distinct_setting(one: NamedRun, resolved: Mapping[tuple[str, ...], Mapping[str, Mapping[str, Any]]]) -> str:
    """The setting, with the values that differ between the runs of this name, in whichever task
    they do."""
    words = [one.setting]
    for task in one.run.tasks:
        variants = resolved.get((*one.row[:3], task.task), {}).values()
        own = _resolved(task)
        differing = sorted({key for values in variants for key in own if values.get(key) != own[key]})
        words += [word for key in differing if (word := f"{key}={own[key]}") not in words]
    return ", ".join(words)
