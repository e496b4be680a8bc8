"""From runs to one tidy table: a row per model, method, setting and benchmark."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from sttm_lmms.errors import STTMError
from sttm_lmms.provenance import RunSummary
from sttm_lmms.report.compare import (
    Entry,
    answers_comparable,
    certificate_problem,
    differences,
    find_baseline,
    make_entries,
    pair,
    times_comparable,
)
from sttm_lmms.report.paper import paper_rows
from sttm_lmms.report.runs import Run
from sttm_lmms.report.stats import Z95, clustered_interval, mcnemar_exact

if TYPE_CHECKING:
    import pandas as pd

BENCHMARKS = ("VNBench", "VideoMME", "LongVideoBench", "MLVU", "EgoSchema", "NExT-QA")
COLUMNS = (
    "source",  # "run" or "paper"
    "model",
    "method",
    "setting",
    "benchmark",
    "task",
    "questions",  # answered and scored; those on unreadable videos are left out
    "videos",
    "accuracy",  # fraction, as all shares and intervals
    "low",
    "high",
    "interval",  # "video": clustered by video; "question": no video known; "reported": the run's own standard error
    "reported",  # the task's main score in its own unit, where it is not known to be a share of right answers
    "also",  # further scores of the task, such as VNBench's circular one
    "relative",  # accuracy / the baseline's, over the questions both answered
    "lost",
    "won",
    "mcnemar_p",
    "kept_requested",
    "kept_mean",
    "kept_min",
    "kept_max",
    "kept_tokens",  # visual tokens of a question after reduction, mean
    "layer_tokens",  # visual tokens that a decoder layer attends to, mean over layers and questions
    "ttft_s",
    "speed_up",
    "failed_videos",
    "baseline",
    "comparable",  # False if something else than the method may explain the difference to the baseline
    "flags",
    "machine",  # device, dtype and attention backend
    "run",
)
# Ours first: the names of our tasks, then lmms-eval's own, whose prompts and scores differ.
_OURS = {
    "vnbench": "VNBench",
    "videomme": "VideoMME",
    "longvideobench": "LongVideoBench",
    "mlvu": "MLVU",
    "egoschema": "EgoSchema",
    "nextqa": "NExT-QA",
}
_THEIRS = ("videomme", "longvideobench", "mlvu", "egoschema", "nextqa")


def build_table(runs: Sequence[Run], *, paper: bool = False, names: Mapping[str, str] | None = None) -> pd.DataFrame:
    """The tidy table of all runs, ordered by model, benchmark and setting; see ``COLUMNS``.

    ``attrs["problems"]`` names the result files that could not be read.

    Args:
        runs: from :func:`sttm_lmms.report.runs.load_runs`. Of several runs of one row and task the newest is shown,
            and says so.
        paper: add the paper's rows; their ``source`` is ``"paper"``.
        names: task -> column name, for tasks that ran on other data than their name says.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise STTMError('the leaderboard needs pandas: pip install "sttm-lmms[plot]"') from error
    entries = make_entries(runs)
    newest: dict[tuple[str, ...], list[Entry]] = {}
    for entry in entries:
        newest.setdefault((*entry.row, entry.task.task), []).append(entry)
    rows = []
    for same in newest.values():
        shown = max(same, key=lambda entry: (entry.run.date, entry.run.path.as_posix()))
        row = _measure(shown, find_baseline(shown, entries), older=len(same) - 1)
        rows.append({**row, "benchmark": (names or {}).get(shown.task.task, row["benchmark"])})
    rows.sort(key=_order(rows))
    table = pd.DataFrame([*rows, *(paper_rows() if paper else [])], columns=list(COLUMNS))
    table.attrs["problems"] = [run.problem for run in runs if run.problem]
    return table


def benchmark_of(task: str) -> str:
    """Column name of a task; lmms-eval's own task for a benchmark gets a column of its own."""
    name = task.removeprefix("sttm_")
    if name in _OURS and (task.startswith("sttm_") or name not in _THEIRS):
        return _OURS[name]
    for prefix in _THEIRS:
        if task.startswith(prefix):
            return f"{_OURS[prefix]} ({task})"
    return name


def benchmark_order(name: str) -> tuple[int, str]:
    """Sort key of columns: the paper's order, then the others by name."""
    return (BENCHMARKS.index(name) if name in BENCHMARKS else len(BENCHMARKS), name)


def _measure(entry: Entry, baseline: Entry | None, *, older: int) -> dict[str, Any]:
    samples = entry.task.samples
    answered = entry.task.answered
    failed = {s.video or s.doc_id for s in samples or () if s.error is not None}
    accuracy, low, high, interval = _accuracy(entry)
    shares = [s.kept_tokens / s.visual_tokens for s in answered if s.visual_tokens and s.kept_tokens is not None]
    if samples is None:
        recorded, questions = entry.run.summary.questions, sum(task.questions for task in entry.run.tasks)
    else:
        recorded, questions = sum(s.visual_tokens is not None for s in answered), len(answered)
    # The totals of a run are those of this task only as far as they are about the same questions.
    summary = entry.run.summary if samples is None or recorded >= questions else RunSummary()
    uncertified = certificate_problem(entry)
    flags = [uncertified] if uncertified else []
    if older:
        flags.append(f"{older} older run(s) of this setting left out")
    if entry.run.limit is not None:
        flags.append(f"only a part of the data (limit {entry.run.limit:g})")
    if failed:
        flags.append(f"{len(failed)} unreadable video(s), left out of the accuracy")
    unscored = sum(s.error is None and s.score is None for s in samples or ())
    if unscored:
        flags.append(f"{unscored} question(s) without a known answer, left out of the accuracy")
    if 0 < recorded < questions:
        flags.append(f"kept tokens and times over {recorded} of {questions} questions: the others came from a cache")
    if entry.task.problem:
        flags.append(f"samples left out: {entry.task.problem}")
    ttft = _ttft(entry)
    row = {
        "source": "run",
        "model": entry.model,
        "method": entry.method,
        "setting": entry.setting,
        "benchmark": benchmark_of(entry.task.task),
        "task": entry.task.task,
        "questions": len(answered) if samples is not None else entry.task.questions,
        "videos": len({s.video for s in answered if s.video}) or None,
        "accuracy": accuracy,
        "low": low,
        "high": high,
        "interval": interval,
        "reported": _reported(entry) if accuracy is None else None,
        "also": _also(entry, accuracy),
        "kept_requested": _requested(entry),
        "kept_mean": fmean(shares) if shares else summary.kept_share_mean,
        "kept_min": min(shares) if shares else summary.kept_share_min,
        "kept_max": max(shares) if shares else summary.kept_share_max,
        "kept_tokens": _mean_of(s.kept_tokens for s in answered) or summary.tokens_after,
        "layer_tokens": _mean_of(s.layer_tokens for s in answered) or summary.layer_tokens_mean,
        "ttft_s": ttft,
        "failed_videos": len(failed) if samples is not None else int(summary.failures),
        "machine": _machine(entry),
        "run": _run_name(entry.run),
    }
    comparison, more_flags = _compare(entry, baseline, accuracy, ttft)
    row.update(comparison, flags="; ".join(flags + more_flags))
    return {**row, "comparable": not uncertified and row["comparable"]}


def _compare(
    entry: Entry, baseline: Entry | None, accuracy: float | None, ttft: float | None
) -> tuple[dict[str, Any], list[str]]:
    """The columns that need a baseline, and the flags that come with them."""
    if baseline is None:
        return {"comparable": False}, ["no baseline: no run of this model and task without reduction"]
    if baseline is entry:
        alone = {
            "relative": 1.0 if accuracy else None,
            "speed_up": 1.0 if ttft else None,
            "baseline": _run_name(entry.run),
        }
        return {**alone, "comparable": True}, []
    flags = differences(entry, baseline)
    pairing = pair(entry, baseline)
    flags += pairing.problems
    ours, theirs = pairing.ours, pairing.theirs
    paired = ours is not None
    if not paired and None in (entry.task.samples, baseline.task.samples):
        ours, theirs = accuracy, _accuracy(baseline)[0]
    base_ttft = _ttft(baseline)
    faster = base_ttft / ttft if ttft and base_ttft and times_comparable(entry, baseline) else None
    return {
        "relative": ours / theirs if ours is not None and theirs else None,
        "lost": pairing.lost if paired else None,
        "won": pairing.won if paired else None,
        "mcnemar_p": mcnemar_exact(pairing.lost, pairing.won) if paired else None,
        "speed_up": faster,
        "baseline": _run_name(baseline.run),
        "comparable": answers_comparable(entry, baseline) and not pairing.refused,
    }, flags


def _accuracy(entry: Entry) -> tuple[float | None, float | None, float | None, str | None]:
    """Accuracy, 95% interval and where the interval comes from."""
    answered = entry.task.answered
    scores = [s.score for s in answered if s.score is not None]
    if scores:
        videos = [s.video for s in answered]
        known = all(video is not None for video in videos)
        bounds = clustered_interval(scores, videos if known else list(range(len(scores)))) or (None, None)
        return fmean(scores), *bounds, "video" if known else "question"
    mean, error, unit = entry.task.reported_share, entry.task.reported_error, entry.task.unit
    if mean is None or error is None or not unit:
        return mean, None, None, None
    error /= unit
    return mean, max(0.0, mean - Z95 * error), min(1.0, mean + Z95 * error), "reported"


def _also(entry: Entry, accuracy: float | None) -> str:
    """Further scores of the task, and its own main score where that is not our accuracy; in percent where they are
    known to be shares, else as the task reports them."""
    task = entry.task
    scores = [(name, value, benchmark_of(task.task) in BENCHMARKS and 0 <= value <= 1) for name, value in task.also]
    share = task.reported_share
    if task.reported is not None and accuracy is not None and (share is None or abs(share - accuracy) > 0.0005):
        scores.insert(0, (f"{task.metric} as reported", share or task.reported, share is not None))
    return ", ".join(f"{name} {100 * value:.1f}" if shown else f"{name} {value:.4g}" for name, value, shown in scores)


def _reported(entry: Entry) -> str | None:
    return None if entry.task.reported is None else f"{entry.task.reported:.4g} ({entry.task.metric})"


def _ttft(entry: Entry) -> float | None:
    """Mean seconds of whole prefills; the run's total only where it cannot mix several tasks."""
    times = [s.ttft for s in entry.task.samples or () if s.error is None and s.ttft is not None]
    if times:
        return fmean(times)
    if len(entry.run.tasks) > 1:
        return None
    first = entry.run.summary.ttft_first_s
    return first if first is not None else entry.run.summary.ttft_s


def _requested(entry: Entry) -> float | None:
    """The budget asked for; of a preset such as ``paper-30`` the share in its name."""
    settings = entry.task.provenance.settings if entry.task.provenance else {}
    budget = entry.run.model_args.get("budget") or settings.get("budget") or entry.run.summary.requested_budget
    try:
        return float(budget) if budget is not None else _budget_of_preset(entry.run.model_args.get("preset", ""))
    except ValueError:  # of another model, which calls something else a budget
        return None


def _budget_of_preset(preset: str) -> float | None:
    found = re.search(r"-(\d+)(?::|$)", preset)
    return int(found[1]) / 100 if found else None


def _machine(entry: Entry) -> str:
    ran = entry.task.provenance
    return " ".join(filter(None, (ran.device, ran.dtype, ran.attention))) if ran else ""


def _mean_of(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _run_name(run: Run) -> str:
    return "/".join(run.path.parts[-3:])


def _order(rows: Sequence[dict[str, Any]]) -> Callable[[dict[str, Any]], tuple[Any, ...]]:
    """By model; without reduction first; then method by method from much kept to little; then the columns' order."""
    kept: dict[tuple[str, ...], list[float]] = {}
    for row in rows:
        kept.setdefault(_row_key(row), []).append(row["kept_mean"] or 0.0)

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        model, method, setting = _row_key(row)
        share = -round(fmean(kept[model, method, setting]), 6)
        return model, method != "none", method, share, setting, benchmark_order(row["benchmark"])

    return key


def _row_key(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["model"], row["method"], row["setting"]
