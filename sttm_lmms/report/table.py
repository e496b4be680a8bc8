"""From runs to one tidy table: a row per model, method, setting and benchmark."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import pandas as pd

from sttm_lmms.provenance import RunSummary
from sttm_lmms.report.compare import (
    NamedRun,
    certificate_problem,
    differences,
    find_baseline,
    name_runs,
    pair,
)
from sttm_lmms.report.flops import DecoderShape, prefill_flops
from sttm_lmms.report.paper import paper_rows
from sttm_lmms.report.runs import Run
from sttm_lmms.report.stats import Z95, clustered_interval

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
REFERENCE_COLUMNS = (
    "layer_share",  # layer_tokens / all visual tokens
    "kv_share",  # KV entries attended to while decoding / all; NaN where no method edits the cache
    "flops",  # of a prefill by count, mean over the questions; NaN if the checkpoint's sizes are not known
    "flops_factor",  # the baseline's / the run's
    "vision_s",  # seconds of the vision tower, and of the reduction itself, mean over whole prefills
    "merge_s",
    "chance",  # accuracy of a guess among the options of each prompt; NaN where there are none
    "reference",  # the method compared with, where it has a run of the same model, task and budget
    "difference",  # accuracy minus the reference's, over the questions both answered
    "reference_won",
    "reference_lost",
    "reference_p",
)
TEXTS = (
    *("source", "model", "method", "setting", "benchmark", "task", "interval", "reported", "also"),
    *("baseline", "flags", "machine", "run", "reference"),
)
"""Columns that hold no numbers."""
# Ours first: the names of our tasks, then lmms-eval's own, whose prompts and scores differ.
_OURS = {name.lower().replace("-", ""): name for name in BENCHMARKS}
_OPTION = re.compile(r"^\(?[A-Z][.)]\s", re.MULTILINE)
_THEIRS = tuple(name for name in _OURS if name != "vnbench")


def build_table(
    runs: Sequence[Run],
    *,
    paper: bool = False,
    names: Mapping[str, str] | None = None,
    reference: str | None = None,
    shapes: Mapping[str, DecoderShape] | None = None,
) -> pd.DataFrame:
    """The tidy table of all runs, ordered by model, benchmark and setting; see ``COLUMNS``.

    ``attrs["problems"]`` names the result files that could not be read.

    Args:
        runs: from :func:`sttm_lmms.report.runs.load_runs`. Of several runs of one row and task the
            newest is shown, and says so.
        paper: add the paper's rows; their ``source`` is ``"paper"``.
        names: task -> column name, for tasks that ran on other data than their name says.
        reference: method that the others are compared with at equal budgets; adds
            ``REFERENCE_COLUMNS``.
        shapes: model name -> sizes of its decoder, for ``flops``.
    """
    named = name_runs(runs)
    shown = list({one.row: one for one in named}.values())  # the newest of equal runs
    times_run = Counter(one.row for one in named)
    rows = [_measure(one, find_baseline(one, named), older=times_run[one.row] - 1) for one in shown]
    for row in rows:
        row["benchmark"] = (names or {}).get(row["task"], row["benchmark"])
    if reference is not None:
        for one, row in zip(shown, rows, strict=True):
            row |= _compute(one, (shapes or {}).get(one.model)) | _against_reference(one, reference, shown)
        plain = {(one.model, one.task.task): find_baseline(one, named) for one in shown if one.method == reference}
        full = {}
        for one, row in zip(shown, rows, strict=True):
            whole = plain.get((one.model, one.task.task), one)
            if one.method == "none" and one is whole:
                full[row["model"], row["task"]] = row["flops"]
            elif one.method == "none" and whole is not None:
                row |= _control(one, whole)
        for row in rows:
            row["flops_factor"] = _ratio(full.get((row["model"], row["task"])), row["flops"])
    columns = [*COLUMNS, *(REFERENCE_COLUMNS if reference else ())]
    printed = paper_rows() if paper else []
    table = _ordered(pd.DataFrame([*rows, *printed], columns=columns))
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


def _measure(one: NamedRun, baseline: NamedRun | None, *, older: int) -> dict[str, Any]:
    """One row of the table, with the columns that need no reference."""
    samples, answered, run, ran = one.task.samples, one.task.answered, one.run, one.task.provenance
    accuracy, low, high, interval = _accuracy(one)
    if samples is None:
        recorded, questions = run.summary.questions, sum(task.questions for task in run.tasks)
        failed, unscored = int(run.summary.failures), 0
    else:
        recorded, questions = int(answered["visual_tokens"].notna().sum()), len(answered)
        gone = samples[samples["error"].notna()]
        failed = int(gone["video"].fillna(gone["doc_id"]).nunique())
        unscored = int((samples["error"].isna() & samples["score"].isna()).sum())
    # The totals of a run are those of this task only as far as they are about the same questions.
    totals = run.summary if samples is None or recorded >= questions else RunSummary()
    shares = answered["kept_tokens"] / answered["visual_tokens"].where(answered["visual_tokens"] > 0)
    ttft = _ttft(one)
    uncertified = certificate_problem(one)
    comparison, differing = _against_baseline(one, baseline, accuracy, ttft)
    flags = [
        uncertified,
        older and f"{older} older run(s) of this setting left out",
        run.limit is not None and f"only a part of the data (limit {run.limit:g})",
        samples is not None and failed and f"{failed} unreadable video(s), left out of the accuracy",
        unscored and f"{unscored} question(s) without a known answer, left out of the accuracy",
        0 < recorded < questions
        and f"kept tokens and times over {recorded} of {questions} questions: the others came from a cache",
        one.task.problem and f"samples left out: {one.task.problem}",
        *differing,
    ]
    return {
        "source": "run",
        "model": one.model,
        "method": one.method,
        "setting": one.setting,
        "benchmark": benchmark_of(one.task.task),
        "task": one.task.task,
        "questions": len(answered) if samples is not None else one.task.questions,
        "videos": int(answered["video"].nunique()) or None,
        "accuracy": accuracy,
        "low": low,
        "high": high,
        "interval": interval,
        "reported": None if accuracy is not None else _as_reported(one),
        "also": _also(one, accuracy),
        "kept_requested": _requested(one),
        "kept_mean": _known(shares.mean(), totals.kept_share_mean),
        "kept_min": _known(shares.min(), totals.kept_share_min),
        "kept_max": _known(shares.max(), totals.kept_share_max),
        "kept_tokens": _known(answered["kept_tokens"].mean(), totals.tokens_after),
        "layer_tokens": _known(answered["layer_tokens"].mean(), totals.layer_tokens_mean),
        "ttft_s": ttft,
        "failed_videos": failed,
        "machine": " ".join(filter(None, (ran.device, ran.dtype, ran.attention))) if ran else "",
        "run": _run_name(run),
        **comparison,
        "comparable": not uncertified and comparison["comparable"],
        "flags": "; ".join(str(flag) for flag in flags if flag),
    }


def _against_baseline(
    one: NamedRun, baseline: NamedRun | None, accuracy: float | None, ttft: float | None
) -> tuple[dict[str, Any], list[str]]:
    """The columns that need a baseline, and what else than the method differs from it."""
    if baseline is None:
        return {"comparable": False}, ["no baseline: no run of this model and task without reduction"]
    if baseline is one:
        alone = {"relative": 1.0 if accuracy else None, "speed_up": 1.0 if ttft else None}
        return {**alone, "baseline": _run_name(one.run), "comparable": True}, []
    differing = differences(one, baseline)
    pairs = pair(one.task.samples, baseline.task.samples)
    logged = one.task.samples is not None and baseline.task.samples is not None
    if logged:
        ours, theirs = pairs.scores["ours"].mean(), pairs.scores["theirs"].mean()
    else:
        ours, theirs = accuracy, _accuracy(baseline)[0]
    tested = {} if pairs.scores.empty else {"lost": pairs.lost, "won": pairs.won, "mcnemar_p": pairs.p}
    return {
        "relative": ours / theirs if ours is not None and theirs else None,
        **tested,
        "speed_up": None if any(one.times for one in differing) else _ratio(_ttft(baseline), ttft),
        "baseline": _run_name(baseline.run),
        "comparable": (pairs.comparable or not logged) and not any(one.answers for one in differing),
    }, [one.words for one in differing] + pairs.problems


def _against_reference(one: NamedRun, reference: str, shown: Iterable[NamedRun]) -> dict[str, Any]:
    """The columns that compare a method with the reference at the same budget; none for the
    reference itself."""

    def key(run: NamedRun) -> tuple[str, str, float | None]:
        return run.model, run.task.task, _number(run.run.model_args.get("budget"))

    same = [other for other in shown if other.method == reference and key(other) == key(one)]
    if not same or one.method in ("none", reference):
        return {}
    pairs = pair(one.task.samples, same[-1].task.samples)
    if not pairs.comparable:
        return {}
    return {
        "reference": reference,
        "difference": pairs.scores["ours"].mean() - pairs.scores["theirs"].mean(),
        "reference_won": pairs.won,
        "reference_lost": pairs.lost,
        "reference_p": pairs.p,
    }


def _control(one: NamedRun, whole: NamedRun) -> dict[str, Any]:
    """The columns of a run without reduction that sees other frames than ``whole``, or none: it is
    compared as if it were a method that kept so many of its tokens."""
    tokens, all_tokens = (run.task.answered["visual_tokens"].mean() for run in (one, whole))
    pairs = pair(one.task.samples, whole.task.samples)
    found = {"kept_mean": _ratio(tokens, all_tokens) or 0.0, "speed_up": _ratio(_ttft(whole), _ttft(one))}
    if not pairs.comparable or pairs.scores.empty:
        return found
    relative = _ratio(pairs.scores["ours"].mean(), pairs.scores["theirs"].mean())
    tested = {"lost": pairs.lost, "won": pairs.won, "mcnemar_p": pairs.p}
    return {**found, **tested, "relative": relative, "baseline": _run_name(whole.run)}


def _compute(one: NamedRun, shape: DecoderShape | None) -> dict[str, float | None]:
    """What the layers see of a question and compute on it, mean over the questions; None unless all
    of them say."""
    seen = one.task.answered[["input_tokens", "visual_tokens", "kept_tokens", "layer_tokens"]]
    visual, kept = seen["visual_tokens"], seen["kept_tokens"]
    start = (one.task.provenance.settings if one.task.provenance else {}).get("start_layer")
    # Older files have no number of their own for each answer.
    if one.method == "none":
        supposed = visual
    elif shape is not None and start is not None:
        supposed = (start * visual + (shape.layers - start) * kept) / shape.layers
    else:
        supposed = pd.Series(one.run.summary.layer_tokens_mean if len(one.run.tasks) == 1 else None, seen.index, float)
    seen = seen.assign(layer_tokens=seen["layer_tokens"].fillna(supposed))
    summary = one.run.summary
    found: dict[str, float | None] = {"kv_share": summary.kv_share_mean, "flops": None}
    found |= {"vision_s": summary.vision_s, "merge_s": summary.merge_s, "chance": _chance(one)}
    if seen.empty or seen.isna().any(axis=None) or (visual == 0).any():
        return found | {"layer_tokens": None, "layer_share": None}
    if shape is not None:
        sizes = seen.rename(columns=lambda name: name.removesuffix("_tokens")).assign(
            text=seen["input_tokens"] - visual
        )
        found["flops"] = fmean(
            prefill_flops(shape, text=size.text, visual=size.visual, kept=size.kept, layer_tokens=size.layer)
            for size in sizes.itertuples()
        )
    layers = seen["layer_tokens"]
    return found | {"layer_tokens": fmean(layers), "layer_share": fmean(layers / visual)}


def _chance(one: NamedRun) -> float | None:
    """Mean of 1 / options over the questions, as the prompts list them."""
    options = one.task.answered["prompt"].str.count(_OPTION)
    return float((1 / options).mean()) if len(options) and (options > 1).all() else None


def _accuracy(one: NamedRun) -> tuple[float | None, float | None, float | None, str | None]:
    """Accuracy, 95% interval and where the interval comes from."""
    answered, task = one.task.answered, one.task
    if len(answered):
        scores, videos = answered["score"].tolist(), answered["video"]
        known = bool(videos.notna().all())
        bounds = clustered_interval(scores, videos.tolist() if known else range(len(scores))) or (None, None)
        return fmean(scores), *bounds, "video" if known else "question"
    mean = task.reported_share
    if mean is None or task.reported_error is None or not task.unit:
        return mean, None, None, None
    half = Z95 * task.reported_error / task.unit
    return mean, max(0.0, mean - half), min(1.0, mean + half), "reported"


def _as_reported(one: NamedRun) -> str | None:
    return None if one.task.reported is None else f"{one.task.reported:.4g} ({one.task.metric})"


def _also(one: NamedRun, accuracy: float | None) -> str:
    """Further scores of the task, and its own main score where that is not our accuracy; in percent
    where they are known to be shares, else as the task reports them."""
    task, share = one.task, one.task.reported_share
    scores = [(name, value, benchmark_of(task.task) in BENCHMARKS and 0 <= value <= 1) for name, value in task.also]
    if task.reported is not None and accuracy is not None and (share is None or abs(share - accuracy) > 0.0005):
        own = task.reported if share is None else share
        scores.insert(0, (f"{task.metric} as reported", own, share is not None))
    return ", ".join(f"{name} {100 * value:.1f}" if known else f"{name} {value:.4g}" for name, value, known in scores)


def _ttft(one: NamedRun) -> float | None:
    """Mean seconds of whole prefills; the run's total only where it cannot mix several tasks."""
    samples, summary = one.task.samples, one.run.summary
    times = [] if samples is None else samples["ttft"][samples["error"].isna()].dropna().tolist()
    if times:
        return fmean(times)
    if len(one.run.tasks) > 1:
        return None
    return summary.ttft_s if summary.ttft_first_s is None else summary.ttft_first_s


def _requested(one: NamedRun) -> float | None:
    """The budget asked for; of a preset such as ``paper-30`` the share in its name."""
    args, settings = one.run.model_args, one.task.provenance.settings if one.task.provenance else {}
    for budget in (args.get("budget"), settings.get("budget"), one.run.summary.requested_budget):
        if budget:
            return _number(budget)  # another model may call something else a budget
    preset = re.search(r"-(\d+)(?::|$)", args.get("preset", ""))
    return int(preset[1]) / 100 if preset else None


def _number(text: Any) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def _known(*values: float | None) -> float | None:
    """The first one that is a number."""
    return next((value for value in values if value is not None and pd.notna(value)), None)


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above and below else None


def _run_name(run: Run) -> str:
    return "/".join(run.path.parts[-3:])


def _ordered(table: pd.DataFrame) -> pd.DataFrame:
    """By model; without reduction first; then method by method from much kept to little; then the
    columns' order. The paper's rows last, in its own order."""
    row = ["model", "method", "setting"]
    runs = table[table["source"] == "run"]
    kept = runs.assign(kept=runs["kept_mean"].astype(float).fillna(0)).groupby(row)["kept"].transform("mean").round(6)
    keys = runs[row].assign(
        reduced=runs["method"] != "none", share=-kept, column=runs["benchmark"].map(benchmark_order)
    )
    order = keys.sort_values(["model", "reduced", "method", "share", "setting", "column"], kind="stable").index
    return table.loc[[*order, *table.index.difference(runs.index)]].reset_index(drop=True)
