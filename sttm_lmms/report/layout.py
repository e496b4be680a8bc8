"""From the tidy table to what a reader sees: tables of texts, notes and a legend."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import pandas as pd

from sttm_lmms.report.paper import SOURCE as PAPER
from sttm_lmms.report.stats import mcnemar_exact
from sttm_lmms.report.table import BENCHMARKS, COLUMNS, REFERENCE_COLUMNS, TEXTS, benchmark_order

WORDS = ("Model", "Method", "Setting", "Benchmark")
"""Columns that hold no numbers."""
LAYERS, INTO, FAILED = "Mean tokens a layer", "Visual tokens into the LLM", "Failed videos"
DIFFERENCE = "Difference to {}"
LEGEND = (
    "Accuracy in percent with its 95% interval, clustered by video (Wilson's interval at the effective sample size); "
    "† is the run's own standard error, ‡ an interval that takes questions as independent because no video was logged.",
    "Relative: accuracy / accuracy of the same model without reduction on the questions both answered; over several "
    "benchmarks the mean of the ratios, as is the speed-up. Lost and won: questions that only the baseline, only the "
    "run answered right; p: exact McNemar test, which takes questions as independent.",
    "Kept: visual tokens after / before reduction, asked for and achieved: mean (min–max over questions).",
    "TTFT: seconds of the decoder's first pass over the whole prompt, without video decoding and vision encoder; and "
    "how much faster that is than without reduction.",
    "Visual tokens into the LLM: per question, after reduction (layers before the start layer still see all).",
)
LAYERS_LEGEND = (
    "Mean tokens a layer: visual tokens that a decoder layer attends to, mean over all layers and questions."
)
PAPER_LEGEND = "Rows marked (paper) are the numbers printed in arXiv 2507.07990, measured by its authors on an A100."
EQUAL_BUDGETS_LEGEND = (
    "Accuracy in percent with its 95% interval, clustered by video. Relative: to the same model with all tokens.",
    "Budget is what was asked for. Kept: visual tokens after all reductions / before. Mean tokens a layer: visual "
    "tokens that a decoder layer attends to, mean over layers (share of all): the same measure for methods that reduce "
    "before, inside or layer by layer.",
    "TTFT: seconds of the decoder's first pass over the whole prompt, measured on this machine, and the speed-up. "
    "GFLOPs: the same pass by count, and how many times fewer; what a method itself computes is not in it.",
    "Difference: accuracy in points minus the reference's at the same budget, over the questions that both answered; "
    "won and lost: questions that only this method, only the reference answered right; p: exact McNemar test, which "
    "takes questions as independent.",
)


class Page(NamedTuple):
    """Everything that a rendered leaderboard says.

    Attributes:
        tables: caption and table; every cell is a text that begins with its value.
        shared: what all rows have in common.
        command: how to make it again; empty if unknown.
    """

    title: str
    tables: tuple[tuple[str, pd.DataFrame], ...]
    notes: tuple[str, ...]
    legend: tuple[str, ...]
    command: str = ""
    shared: tuple[str, ...] = ()


JSON_COLUMNS = (
    *("model", "method", "budget", "task", "questions", "videos", "accuracy", "low", "high", "relative", "kept_share"),
    *("layer_tokens", "layer_share", "kv_share", "ttft_s", "speed_up", "flops", "flops_factor"),
    *("against", "notes", "run"),
)

# A heading and what stands below it, made of the rows of one group: the benchmarks of one setting,
# or a single one. To add a column, add a line here and its numbers in ``table.py``; a column that
# is empty in all rows is not printed.
Cells = dict[str, Callable[[pd.DataFrame], str]]


def _mean_of(column: str, pattern: str) -> Callable[[pd.DataFrame], str]:
    return lambda rows: text(_mean(rows, column), pattern)


def _first(column: str) -> Callable[[pd.DataFrame], str]:
    return lambda rows: rows[column].iloc[0]


SUMMARY: Cells = {
    "Relative": _mean_of("relative", "{:.1%}"),
    "Kept": lambda rows: text(_mean(rows, "kept_mean"), "{:.1%}") + _spread(rows),
    "TTFT": lambda rows: text(_mean(rows, "ttft_s"), "{:.3f} s") + text(_mean(rows, "speed_up"), " ({:.2f}×)"),
    LAYERS: _mean_of("layer_tokens", "{:.0f}"),
    INTO: _mean_of("kept_tokens", "{:.0f}"),
    FAILED: lambda rows: text(rows.loc[rows["counted"], "failed_videos"].sum(min_count=1), "{:.0f}"),
}
DETAILS: Cells = {
    "Benchmark": _first("column"),
    "Questions": _mean_of("questions", "{:.0f}"),
    "Videos": _mean_of("videos", "{:.0f}"),
    "Accuracy": lambda rows: _accuracy(rows.iloc[0]),
    "Relative": SUMMARY["Relative"],
    "Lost": _mean_of("lost", "{:.0f}"),
    "Won": _mean_of("won", "{:.0f}"),
    "p": lambda rows: p_value(_mean(rows, "mcnemar_p")),
    "Kept asked": _mean_of("kept_requested", "{:.0%}"),
    **{heading: cell for heading, cell in SUMMARY.items() if heading != "Relative"},
    "Also reported": _first("also"),
}
EQUAL_BUDGETS: Cells = {
    "Relative": SUMMARY["Relative"],
    "Kept": _mean_of("kept_mean", "{:.1%}"),
    INTO: SUMMARY[INTO],
    LAYERS: lambda rows: text(_mean(rows, "layer_tokens"), "{:.0f}") + text(_mean(rows, "layer_share"), " ({:.1%})"),
    "KV kept": _mean_of("kv_share", "{:.1%}"),
    "TTFT": SUMMARY["TTFT"],
    "Vision tower": _mean_of("vision_s", "{:.3f} s"),
    "Merging": _mean_of("merge_s", "{:.4f} s"),
    "GFLOPs": lambda rows: (
        text(_mean(rows, "flops") / 1e9, "{:#.3g}") + text(_mean(rows, "flops_factor"), " ({:.2f}×)")
    ),
    DIFFERENCE: lambda rows: text(100 * _difference(rows), "{:+.1f}"),
    "Won": lambda rows: text(_total(rows, "reference_won"), "{:.0f}"),
    "Lost": lambda rows: text(_total(rows, "reference_lost"), "{:.0f}"),
    "p": lambda rows: p_value(_reference_p(rows)),
}


def leaderboard_page(
    table: pd.DataFrame, title: str = "Leaderboard", command: str = "", reference: str | None = None
) -> Page:
    """Lay out a table of :func:`sttm_lmms.report.table.build_table`.

    Without ``reference`` a row for each setting, then one for each task. With it a row for each
    model, method and budget, and its difference to that method at the same budget.
    """
    problems, missing = table.attrs.get("problems", ()), table.attrs.get("missing", ())
    table = _complete(table)
    table["budget"] = _budgets(table)
    table["rest"], shared = factor_common_settings(table)
    notes: list[str] = []
    if reference is None:
        tables, legend = _by_setting(table, notes), _legend(table)
    else:
        tables, legend = _by_budget(table, reference, notes), EQUAL_BUDGETS_LEGEND
        shared = (_conditions(table), *summary_lines(table), *control_lines(table), *missing)
    notes += [f"left out: {problem}" for problem in problems]
    return Page(title, tables, tuple(notes), legend, command, shared)


def _by_setting(table: pd.DataFrame, notes: list[str]) -> tuple[tuple[str, pd.DataFrame], ...]:
    """A row for each setting with a column for each benchmark, and a row for each of both."""
    names = sorted(set(table["benchmark"]) - {"Mean"}, key=benchmark_order)
    averaged = [name for name in names if name in BENCHMARKS] or names
    paper = table["source"] == PAPER
    unsaid = (table["method"] == "none").map({True: "all tokens", False: "defaults"})
    table = table.assign(
        column=table["benchmark"],
        counted=table["benchmark"].isin(averaged),
        name=table["model"] + paper.map({True: " (paper)", False: ""}),
        rest=table["rest"].where(table["rest"] != "", unsaid),
    )
    labels: Cells = {"Model": _first("name"), "Method": _first("method"), "Setting": _first("rest")}
    means: Cells = {"Mean": partial(_mean_accuracy, wanted=len(averaged))} if len(averaged) > 1 else {}
    noted: Cells = {"Notes": partial(_note_numbers, notes=notes)}
    settings = table.groupby(["source", "model", "method", "setting"], sort=False)
    # Of the paper's rows the summary already says all there is, unless they have times.
    told = table[(~paper | table["ttft_s"].notna()) & (table["benchmark"] != "Mean")].assign(counted=True)
    return (
        ("All runs", _write(settings, labels | _scores(names) | means | SUMMARY | noted)),
        ("By benchmark", _write(told.groupby(told.index), labels | DETAILS)),
    )


def _by_budget(table: pd.DataFrame, reference: str, notes: list[str]) -> tuple[tuple[str, pd.DataFrame], ...]:
    """A row for each model, method and budget, from much kept to little, the reference first."""
    table = table.assign(
        column=table["task"],
        counted=True,
        falling=-table["budget"].fillna(2.0),
        apart=table["baseline"] != table["run"],  # a control stands below the run with all tokens
        other=table["method"] != reference,
        rest=table["rest"].str.replace(r"(^|, )budget [^,]*", "", regex=True).str.removeprefix(", "),
    ).sort_values(["model", "falling", "apart", "other"], kind="stable")
    labels: Cells = {
        "Model": _first("model"),
        "Method": _first("method"),
        "Budget": lambda rows: text(rows["budget"].iloc[0], "{:.0%}"),
        "Setting": _first("rest"),
    }
    tasks = list(dict.fromkeys(table["task"].sort_index()))
    groups = table.groupby(["model", "falling", "method", "rest"], sort=False)
    noted: Cells = {"Notes": partial(_note_numbers, notes=notes)}
    written = _write(groups, labels | _scores(tasks) | EQUAL_BUDGETS | noted)
    return (("All methods", written.rename(columns={DIFFERENCE: DIFFERENCE.format(reference)})),)


def _write(groups: Iterable[tuple[Any, pd.DataFrame]], cells: Cells) -> pd.DataFrame:
    """A row of texts for each group, without columns that say nothing: empty in all rows, or
    nowhere a video that failed."""
    texts = [{heading: cell(rows) for heading, cell in cells.items()} for _, rows in groups]
    table = pd.DataFrame(texts, columns=list(cells))
    return table[[name for name in table if not table[name].isin(["", "0"] if name == FAILED else [""]).all()]]


def _scores(names: Iterable[str]) -> Cells:
    """A column of accuracies for each benchmark or task."""

    def score(rows: pd.DataFrame, name: str) -> str:
        found = rows[rows["column"] == name]
        return "" if found.empty else _accuracy(found.iloc[-1])

    return {name: partial(score, name=name) for name in names}


def _complete(table: pd.DataFrame) -> pd.DataFrame:
    """With all columns; unknown numbers are NaN, unknown texts empty."""
    table = table.reset_index(drop=True).reindex(columns=[*COLUMNS, *REFERENCE_COLUMNS])
    texts, numbers = table[[*TEXTS]].astype(object), table.drop(columns=[*TEXTS]).astype(float)
    return pd.concat([texts.where(texts.notna(), ""), numbers], axis=1)


def _legend(table: pd.DataFrame) -> tuple[str, ...]:
    layers = (LAYERS_LEGEND,) if table["layer_tokens"].notna().any() else ()
    paper = (PAPER_LEGEND,) if (table["source"] == PAPER).any() else ()
    return (*LEGEND, *layers, *paper)


def equal_budget_json(table: pd.DataFrame, command: str = "") -> str:
    """The rows of a table with ``REFERENCE_COLUMNS`` as JSON, with the command that made them.

    Shares, accuracies and differences are fractions, times seconds; None is unknown.
    """
    compared = ["reference", "difference", "reference_won", "reference_lost", "questions", "reference_p"]
    counts = ["questions", "videos", "reference_won", "reference_lost"]
    table = table.astype(dict.fromkeys(counts, "Int64"))
    against = _records(table[compared].rename(columns=lambda name: name.removeprefix("reference_")))
    table = table.assign(
        budget=_budgets(table),
        kept_share=table["kept_mean"],
        against=[row if row["reference"] else None for row in against],
        notes=table["flags"].map(_flags),
    )
    return json.dumps({"command": command, "rows": _records(table[[*JSON_COLUMNS]])}, indent=1) + "\n"


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as dictionaries of plain values, None where one is unknown."""
    return table.astype(object).where(table.notna(), None).to_dict("records")


def summary_lines(table: pd.DataFrame) -> list[str]:
    """A sentence about the methods that are more accurate than the reference at some budget; or
    that none is."""
    compared = table[table["reference"] != ""]
    if compared.empty:
        return []
    reference = compared["reference"].iloc[0]
    lines = []
    for budget in sorted(compared["budget"].dropna().unique(), reverse=True):
        better = [
            f"{row.method} ({row.model}, {row.task}): {100 * row.difference:+.1f} points, p = {row.reference_p:.2g}"
            for row in compared[compared["budget"] == budget].sort_values("difference", ascending=False).itertuples()
            if row.difference > 0
        ]
        said = f"More accurate than {reference} at the same budget: {'; '.join(better)}"
        lines.append(f"At {budget:.0%}: {said if better else f'no method is more accurate than {reference}'}.")
    if not (compared["difference"] > 0).any():
        return [f"No method is more accurate than {reference} at the same budget here."]
    return lines


def control_lines(table: pd.DataFrame) -> list[str]:
    """Sentences about what accuracy is worth: answers that change by themselves, and no video."""
    lines = []
    for row in table[table["method"] == "none"].itertuples():
        where = f"{row.model}, {row.task}"
        changed = f"{row.lost:.0f} lost, {row.won:.0f} won"
        if "phase=" in row.setting and pd.notna(row.lost):
            share = (row.lost + row.won) / row.questions
            lines.append(f"Frames half a step later, all tokens ({where}): {share:.1%} change, {changed}.")
        if "video=none" in row.setting:
            chance = "" if pd.isna(row.chance) else f"; chance {row.chance:.1%}"
            lines.append(f"No video ({where}): {row.accuracy:.1%} right{chance}.")
    return lines


def factor_common_settings(table: pd.DataFrame) -> tuple[pd.Series, tuple[str, ...]]:
    """The settings without what all rows have in common, and the sentences that say it once.

    A setting such as ``max_frames=16`` that all rows of a model have goes into a sentence about the
    model; one that all rows have, and the machine, into a sentence about all. How much to keep
    (``budget 0.5``, thresholds, a preset's name) stays in its row. The paper's rows are left alone.
    """
    runs = table[table["source"] != PAPER]
    machine = ("on " + runs["machine"]).where(runs["machine"] != "", "")
    words = (runs["setting"] + ", " + machine).map(lambda text: [word for word in text.split(", ") if word])
    common = {model: _shared(list(group)) for model, group in words.groupby(runs["model"], sort=False)}
    everywhere = _shared(list(common.values()))
    lines = [f"All runs: {', '.join(everywhere)}."] * bool(everywhere)
    for model, shared in common.items():
        if rest := [word for word in shared if word not in everywhere]:
            lines.append(f"{model}: {', '.join(rest)}.")
    own = table["setting"].copy()
    for row, model in runs["model"].items():
        own[row] = ", ".join(word for word in words[row] if word not in common[model])
    return own, tuple(lines)


def _shared(lists: Sequence[Sequence[str]]) -> list[str]:
    first = lists[0] if lists else []
    return [word for word in first if ("=" in word or word.startswith("on ")) and all(word in other for other in lists)]


def _conditions(table: pd.DataFrame) -> str:
    """What was asked, of how many videos; where a run has fewer, its notes say why."""
    largest = table.loc[table.groupby("task", sort=False)["questions"].idxmax()]
    texts = [
        f"{row.task}: {row.questions:.0f} questions{text(row.videos, ' on {:.0f} videos')}"
        for row in largest.itertuples()
    ]
    return "; ".join(texts) + "."


def _budgets(table: pd.DataFrame) -> pd.Series:
    return table["kept_requested"].where(table["method"] != "none").astype(float)


def text(value: float, pattern: str) -> str:
    """A number written by a format such as ``{:.1%}``; "" where it is unknown."""
    return "" if pd.isna(value) else pattern.format(value)


def p_value(value: float) -> str:
    """Three decimals, or the order of magnitude of what is smaller."""
    return text(value, "{:.3f}" if value >= 0.001 else "{:.0e}")


def _accuracy(row: pd.Series) -> str:
    if pd.isna(row["accuracy"]):
        return row["reported"] or "not scored"
    mark = {"reported": "†", "question": "‡"}.get(row["interval"], "")
    interval = "" if pd.isna(row["low"]) else f" [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
    return f"{100 * row['accuracy']:.1f}{mark}{interval}"


def _mean_accuracy(rows: pd.DataFrame, wanted: int) -> str:
    mean, measured = _mean(rows, "accuracy"), rows["counted"].sum()
    if pd.isna(mean):
        return ""
    return f"{100 * mean:.1f}" + (f" ({measured} of {wanted})" if measured < wanted else "")


def _spread(rows: pd.DataFrame) -> str:
    counted = rows[rows["counted"]]
    low, high = counted["kept_min"].min(), counted["kept_max"].max()
    return f" ({100 * low:.1f}–{100 * high:.1f})" if low < high else ""


def _note_numbers(rows: pd.DataFrame, notes: list[str]) -> str:
    """Numbers of the row's notes; a note that holds for some benchmarks only names them."""
    texts: dict[str, list[str]] = {}
    for name, flags in zip(rows["column"], rows["flags"], strict=True):
        for text in _flags(flags):
            texts.setdefault(text, []).append(name)
    numbers = []
    for text, names in texts.items():
        note = text if len(names) == len(rows) else f"{', '.join(names)}: {text}"
        if note not in notes:
            notes.append(note)
        numbers.append(str(notes.index(note) + 1))
    return "⚠ " + ", ".join(numbers) if numbers else ""


def _flags(flags: str) -> list[str]:
    return [text for text in flags.split("; ") if text]


def _mean(rows: pd.DataFrame, column: str) -> float:
    """Mean over the benchmarks, NaN unless all have it: a mean over some would compare different
    things. Else the average that the paper prints of all together."""
    mean = rows.loc[rows["counted"], column].mean(skipna=False)
    return mean if pd.notna(mean) else rows.loc[rows["benchmark"] == "Mean", column].mean()


def _total(rows: pd.DataFrame, column: str) -> float:
    return rows[column].sum(skipna=False)


def _difference(rows: pd.DataFrame) -> float:
    """Several tasks as one, in which each question counts once."""
    return (rows["difference"] * rows["questions"]).sum(skipna=False) / rows["questions"].sum()


def _reference_p(rows: pd.DataFrame) -> float:
    lost, won = _total(rows, "reference_lost"), _total(rows, "reference_won")
    return float("nan") if pd.isna(lost) else mcnemar_exact(int(lost), int(won))
