"""From the tidy table to what a reader sees: tables of texts, notes and a legend."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import pandas as pd

from sttm_lmms.report.paper import SOURCE as PAPER
from sttm_lmms.report.stats import mcnemar_exact
from sttm_lmms.report.table import BENCHMARKS, benchmark_order

WORDS = ("Model", "Method", "Setting", "Benchmark")
"""Columns that hold no numbers."""
LAYERS, INTO, FAILED = "Mean tokens a layer", "Visual tokens into the LLM", "Failed videos"
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


def leaderboard_page(table: pd.DataFrame, title: str = "Leaderboard", command: str = "") -> Page:
    """Lay out a table of :func:`sttm_lmms.report.table.build_table`: a row for each setting, then
    one for each task."""
    problems, table = table.attrs.get("problems", ()), table.reset_index(drop=True)
    settings, shared = factor_common_settings(table)
    table = table.assign(full_setting=table["setting"], setting=settings)
    table["name"] = table["model"] + (table["source"] == PAPER).map({True: " (paper)", False: ""})
    notes: list[str] = []
    # The summary comes first: it numbers the notes.
    tables = (("All runs", _without_empty(_summary(table, notes))), ("By benchmark", _without_empty(_details(table))))
    notes += [f"left out: {problem}" for problem in problems]
    legend = [
        *LEGEND,
        *([LAYERS_LEGEND] if table["layer_tokens"].notna().any() else []),
        *([PAPER_LEGEND] if (table["source"] == PAPER).any() else []),
    ]
    return Page(title, tables, tuple(notes), tuple(legend), command, shared)


def equal_budget_page(table: pd.DataFrame, title: str, command: str = "", reference: str = "sttm") -> Page:
    """Lay out a table with ``REFERENCE_COLUMNS``: a row for each model, method and budget."""
    table = table.assign(budget=_budgets(table))
    tasks = list(dict.fromkeys(table["task"]))
    order = table.assign(falling=-table["budget"].fillna(2.0), others=table["method"] != reference)
    order = order.sort_values(["model", "falling", "others"], kind="stable")
    notes: list[str] = []
    rows = [
        _equal_budget_row(group, tasks, reference, notes)
        for _, group in order.groupby(["model", "falling", "method"], sort=False)
    ]
    shared = (_conditions(table), *summary_lines(table))
    notes += [f"left out: {problem}" for problem in table.attrs.get("problems", ())]
    grid = _without_empty(pd.DataFrame(rows))
    return Page(title, (("All methods", grid),), tuple(notes), EQUAL_BUDGETS_LEGEND, command, shared)


def equal_budget_json(table: pd.DataFrame, command: str = "") -> str:
    """The rows of a table with ``REFERENCE_COLUMNS`` as JSON, with the command that made them.

    Shares, accuracies and differences are fractions, times seconds; None is unknown.
    """
    table = table.assign(budget=_budgets(table))
    rows = []
    for row in table.astype(object).where(table.notna(), None).to_dict("records"):
        against = {
            "reference": row["reference"],
            "difference": row["difference"],
            "won": _whole(row["reference_won"]),
            "lost": _whole(row["reference_lost"]),
            "questions": row["questions"],
            "p": row["reference_p"],
        }
        rows.append(
            {key: row[key] for key in ("model", "method", "budget", "task", "questions")}
            | {"videos": _whole(row["videos"])}
            | {key: row[key] for key in ("accuracy", "low", "high", "relative")}
            | {"kept_share": row["kept_mean"]}
            | {key: row[key] for key in ("layer_tokens", "layer_share", "kv_share", "ttft_s", "speed_up")}
            | {key: row[key] for key in ("flops", "flops_factor")}
            | {"against": against if row["reference"] else None, "notes": _flags(row["flags"]), "run": row["run"]}
        )
    return json.dumps({"command": command, "rows": rows}, indent=1) + "\n"


def summary_lines(table: pd.DataFrame) -> list[str]:
    """A sentence about the methods that are more accurate than the reference at some budget; or
    that none is."""
    compared = table[table["reference"].notna()]
    if compared.empty:
        return []
    reference = compared["reference"].iloc[0]
    better = [
        f"{row.method} at {row.budget:.0%} ({row.model}, {row.task}): {100 * row.difference:+.1f} points, "
        f"p = {row.reference_p:.2g}"
        for row in compared.itertuples()
        if row.difference > 0 and pd.notna(row.budget)
    ]
    if not (compared["difference"] > 0).any():
        return [f"No method is more accurate than {reference} at the same budget here."]
    return [f"More accurate than {reference} at the same budget: {'; '.join(better)}."]


def factor_common_settings(table: pd.DataFrame) -> tuple[pd.Series, tuple[str, ...]]:
    """The settings without what all rows have in common, and the sentences that say it once.

    A setting such as ``max_frames=16`` that all rows of a model have goes into a sentence about the
    model; one that all rows have, and the machine, into a sentence about all. How much to keep
    (``budget 0.5``, thresholds, a preset's name) stays in its row. The paper's rows are left alone.
    """
    runs = table[table["source"] != PAPER]
    words = {row: _setting_words(setting, machine) for row, setting, machine in _columns(runs, "setting", "machine")}
    by_model: dict[str, list[list[str]]] = {}
    for row, model in runs["model"].items():
        by_model.setdefault(model, []).append(words[row])
    common = {model: _shared(lists) for model, lists in by_model.items()}
    everywhere = _shared(list(common.values()))
    lines = [f"All runs: {', '.join(everywhere)}."] * bool(everywhere)
    for model, shared in common.items():
        if rest := [word for word in shared if word not in everywhere]:
            lines.append(f"{model}: {', '.join(rest)}.")
    shown = table["setting"].copy()
    for row, model, method in _columns(runs, "model", "method"):
        rest = [word for word in words[row] if word not in common[model]]
        shown[row] = ", ".join(rest) or ("all tokens" if method == "none" else "defaults")
    return shown, tuple(lines)


def _columns(table: pd.DataFrame, *names: str) -> Iterable[tuple[Any, ...]]:
    return zip(table.index, *(table[name] for name in names), strict=True)


def _setting_words(setting: str, machine: Any) -> list[str]:
    on = [f"on {machine}"] if isinstance(machine, str) and machine else []
    return [*filter(None, str(setting).split(", ")), *on]


def _shared(lists: Sequence[Sequence[str]]) -> list[str]:
    first = lists[0] if lists else []
    return [word for word in first if ("=" in word or word.startswith("on ")) and all(word in other for other in lists)]


def _summary(table: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    names = sorted(set(table["benchmark"]) - {"Mean"}, key=benchmark_order)
    averaged = [name for name in names if name in BENCHMARKS] or names
    rows = []
    for _, group in table.groupby(["source", "model", "method", "full_setting"], sort=False):
        first = group.iloc[0]
        measured = group[group["benchmark"].isin(averaged)]
        average = group[group["benchmark"] == "Mean"]
        score = {name: _accuracy(row) for name, row in zip(group["benchmark"], _rows(group), strict=True)}
        mean = {"Mean": _mean_accuracy(measured, len(averaged))} if len(averaged) > 1 else {}

        def of_all(column: str, measured: pd.DataFrame = measured, average: pd.DataFrame = average) -> float | None:
            """Over the benchmarks, else as it was reported of all of them together."""
            return _mean(measured, column) or _mean(average, column)

        rows.append(
            {"Model": first["name"], "Method": first["method"], "Setting": first["setting"]}
            | {name: score.get(name, "") for name in names}
            | mean
            | {
                "Relative": percent(_mean(measured, "relative")),
                "Kept": _kept(measured if _mean(measured, "kept_mean") is not None else average),
                "TTFT": seconds(of_all("ttft_s"), of_all("speed_up")),
                LAYERS: count(_mean(measured, "layer_tokens")),
                INTO: count(of_all("kept_tokens")),
                FAILED: count(_total(measured["failed_videos"])),
                "Notes": _note_numbers(group, notes),
            }
        )
    return pd.DataFrame(rows)


def _details(table: pd.DataFrame) -> pd.DataFrame:
    # Of the paper's rows the summary already says all there is, unless they have times.
    told = table[((table["source"] != PAPER) | table["ttft_s"].notna()) & (table["benchmark"] != "Mean")]
    return pd.DataFrame(
        {
            "Model": row["name"],
            "Method": row["method"],
            "Setting": row["setting"],
            "Benchmark": row["benchmark"],
            "Questions": count(row["questions"]),
            "Videos": count(row["videos"]),
            "Accuracy": _accuracy(row),
            "Relative": percent(row["relative"]),
            "Lost": count(row["lost"]),
            "Won": count(row["won"]),
            "p": p_value(row["mcnemar_p"]),
            "Kept asked": percent(row["kept_requested"], 0),
            "Kept": _kept(pd.DataFrame([row])),
            "TTFT": seconds(row["ttft_s"], row["speed_up"]),
            LAYERS: count(row["layer_tokens"]),
            INTO: count(row["kept_tokens"]),
            FAILED: count(row["failed_videos"]),
            "Also reported": row["also"] or "",
        }
        for row in _rows(told)
    )


def _equal_budget_row(group: pd.DataFrame, tasks: Sequence[str], reference: str, notes: list[str]) -> dict[str, str]:
    first = group.iloc[0]
    score = {task: _accuracy(row) for task, row in zip(group["task"], _rows(group), strict=True)}
    texts = list(dict.fromkeys(flag for flags in group["flags"] for flag in _flags(flags)))
    notes += [text for text in texts if text not in notes]
    flops, tokens, share = (_mean(group, name) for name in ("flops", "layer_tokens", "layer_share"))
    row = {
        "Model": first["model"],
        "Method": first["method"],
        "Budget": percent(first["budget"], 0),
        **{task: score.get(task, "") for task in tasks},
        "Relative": percent(_mean(group, "relative")),
        "Kept": percent(_mean(group, "kept_mean")),
        LAYERS: "" if tokens is None or share is None else f"{tokens:.0f} ({100 * share:.1f}%)",
        "KV kept": percent(_mean(group, "kv_share")),
        "TTFT": seconds(_mean(group, "ttft_s"), _mean(group, "speed_up")),
        "GFLOPs": "" if flops is None else f"{flops / 1e9:#.3g}{_factor(_mean(group, 'flops_factor'))}",
    }
    difference = won = lost = p = None
    if group["reference"].notna().all():  # several tasks as one, each question counted once
        questions = group["questions"].sum()
        difference = (group["difference"].astype(float) * group["questions"]).sum() / questions if questions else 0.0
        won, lost = (int(group[name].sum()) for name in ("reference_won", "reference_lost"))
        p = mcnemar_exact(lost, won)
    return row | {
        f"Difference to {reference}": "" if difference is None else f"{100 * difference:+.1f}",
        "Won": count(won),
        "Lost": count(lost),
        "p": p_value(p),
        "Notes": "⚠ " + ", ".join(str(notes.index(text) + 1) for text in texts) if texts else "",
    }


def _conditions(table: pd.DataFrame) -> str:
    """What was asked, of how many videos; where a run has fewer, its notes say why."""
    said = []
    for task, group in table.groupby("task", sort=False):
        most = group.loc[group["questions"].astype(int).idxmax()]
        videos = f" on {most['videos']:.0f} videos" if pd.notna(most["videos"]) else ""
        said.append(f"{task}: {most['questions']:.0f} questions{videos}")
    return "; ".join(said) + "."


def _budgets(table: pd.DataFrame) -> pd.Series:
    return table["kept_requested"].where(table["method"] != "none").astype(float)


def _without_empty(table: pd.DataFrame) -> pd.DataFrame:
    """Without columns that say nothing: empty in all rows, or nowhere a video that failed."""
    return table[[name for name in table if not table[name].isin(["", "0"] if name == FAILED else [""]).all()]]


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction in percent; "" here and below where it is unknown."""
    return "" if value is None or pd.isna(value) else f"{100 * value:.{digits}f}%"


def count(value: float | None) -> str:
    """A whole number."""
    return "" if pd.isna(value) else f"{value:.0f}"


def p_value(value: float | None) -> str:
    """Three decimals, or the order of magnitude of what is smaller."""
    if value is None or pd.isna(value):
        return ""
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"


def seconds(value: float | None, factor: float | None) -> str:
    """Seconds, with the speed-up behind them."""
    if pd.isna(value):
        return "" if pd.isna(factor) else f"{factor:.2f}×"
    return f"{value:.3f} s{_factor(factor)}"


def _factor(value: float | None) -> str:
    return "" if pd.isna(value) else f" ({value:.2f}×)"


def _accuracy(row: pd.Series) -> str:
    if pd.isna(row["accuracy"]):
        return row["reported"] if pd.notna(row["reported"]) else "not scored"
    mark = {"reported": "†", "question": "‡"}.get(row["interval"], "")
    interval = "" if pd.isna(row["low"]) else f" [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
    return f"{100 * row['accuracy']:.1f}{mark}{interval}"


def _mean_accuracy(measured: pd.DataFrame, wanted: int) -> str:
    mean = _mean(measured, "accuracy")
    if mean is None:
        return ""
    return f"{100 * mean:.1f}" + (f" ({len(measured)} of {wanted})" if len(measured) < wanted else "")


def _kept(rows: pd.DataFrame) -> str:
    low, high = rows["kept_min"].min(), rows["kept_max"].max()
    spread = f" ({100 * low:.1f}–{100 * high:.1f})" if low < high else ""
    return percent(mean) + spread if (mean := _mean(rows, "kept_mean")) is not None else ""


def _note_numbers(group: pd.DataFrame, notes: list[str]) -> str:
    """Numbers of the row's notes; a note that holds for some benchmarks only names them."""
    texts: dict[str, list[str]] = {}
    for name, flags in zip(group["benchmark"], group["flags"], strict=True):
        for text in _flags(flags):
            texts.setdefault(text, []).append(name)
    numbers = []
    for text, names in texts.items():
        note = text if len(names) == len(group) else f"{', '.join(names)}: {text}"
        if note not in notes:
            notes.append(note)
        numbers.append(str(notes.index(note) + 1))
    return "⚠ " + ", ".join(numbers) if numbers else ""


def _flags(flags: Any) -> list[str]:
    return [text for text in flags.split("; ") if text] if isinstance(flags, str) else []


def _mean(rows: pd.DataFrame, column: str) -> float | None:
    """Mean of a column, None unless every row has it: a mean over some would compare different
    things."""
    values = rows[column]
    return fmean(values) if len(values) and values.notna().all() else None


def _total(values: pd.Series) -> float | None:
    known = values.dropna()
    return None if known.empty else known.sum()


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _rows(table: pd.DataFrame) -> Iterable[pd.Series]:
    return (row for _, row in table.iterrows())
