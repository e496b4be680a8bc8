"""From the tidy table to what a reader sees: a summary grid, a detail grid, notes and a legend."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from sttm_lmms.report.paper import SOURCE as PAPER
from sttm_lmms.report.shared import say_once
from sttm_lmms.report.table import BENCHMARKS, benchmark_order

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
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


@dataclass(frozen=True)
class Cell:
    """``value`` is shown, ``detail`` behind it or below; ``sort`` is compared (None sorts last)."""

    value: str
    sort: float | str | None = None
    detail: str = ""

    @property
    def text(self) -> str:
        return f"{self.value} {self.detail}".rstrip()


@dataclass(frozen=True)
class Grid:
    """A table to be printed. ``words`` columns are left-aligned; ``paper`` tells which rows are the paper's."""

    caption: str
    columns: tuple[str, ...]
    words: int
    rows: tuple[tuple[Cell, ...], ...]
    paper: tuple[bool, ...]


@dataclass(frozen=True)
class Board:
    """Everything a rendered leaderboard says; ``shared`` is what all rows have in common, ``command`` how to make it
    again (empty if unknown)."""

    title: str
    grids: tuple[Grid, ...]
    notes: tuple[str, ...]
    legend: tuple[str, ...]
    command: str = ""
    shared: tuple[str, ...] = ()


def make_board(table: pd.DataFrame, title: str = "Leaderboard", command: str = "") -> Board:
    """Lay out a table of :func:`sttm_lmms.report.table.build_table`."""
    records = [{key: _known(value) for key, value in record.items()} for record in table.to_dict("records")]
    shown, shared = say_once(records)
    groups: dict[tuple[str, ...], list[Row]] = {}
    for full, record in zip(records, shown, strict=True):
        groups.setdefault((full["source"], full["model"], full["method"], full["setting"]), []).append(record)
    notes: list[str] = []
    legend = list(LEGEND)
    legend += [LAYERS_LEGEND] * any(record["layer_tokens"] is not None for record in records)
    legend += [PAPER_LEGEND] * any(record["source"] == PAPER for record in records)
    # The summary comes first: it numbers the notes.
    problems = [f"left out: {problem}" for problem in table.attrs.get("problems", ())]
    grids = (drop_empty(_summary(list(groups.values()), notes)), drop_empty(_details(shown)))
    return Board(title, grids, (*notes, *problems), tuple(legend), command, shared)


def drop_empty(grid: Grid) -> Grid:
    """The grid without columns that say nothing: empty in all rows, or nowhere a video that failed."""
    used = [
        n
        for n, name in enumerate(grid.columns)
        if any(row[n].text not in ("", "0" if name == FAILED else "") for row in grid.rows)
    ]
    return replace(
        grid,
        columns=tuple(grid.columns[n] for n in used),
        words=sum(n < grid.words for n in used),
        rows=tuple(tuple(row[n] for n in used) for row in grid.rows),
    )


def _summary(groups: Sequence[Sequence[Row]], notes: list[str]) -> Grid:
    names = sorted({r["benchmark"] for group in groups for r in group} - {"Mean"}, key=benchmark_order)
    averaged = [name for name in names if name in BENCHMARKS] or names
    mean = ["Mean"] if len(averaged) > 1 else []
    words, costs = ("Model", "Method", "Setting"), ("Kept", "TTFT", LAYERS, INTO)
    columns = (*words, *names, *mean, "Relative", *costs, FAILED, "Notes")
    rows = []
    for group in groups:
        by_name = {record["benchmark"]: record for record in group}
        first, average = group[0], by_name.get("Mean", {})
        measured = [by_name[name] for name in averaged if name in by_name]
        cells = [_model(first), Cell(first["method"], first["method"]), Cell(first["setting"], first["setting"])]
        cells += [_accuracy(by_name[name]) if name in by_name else Cell("") for name in names]
        if mean:
            cells.append(_mean_accuracy(measured, len(averaged)))
        cells += [
            percent(_mean(measured, "relative")),
            _kept(measured, average),
            ttft_cell(
                _mean(measured, "ttft_s") or average.get("ttft_s"),
                _mean(measured, "speed_up") or average.get("speed_up"),
            ),
            count(_mean(measured, "layer_tokens")),
            count(_mean(measured, "kept_tokens") or average.get("kept_tokens")),
            count(_total(measured, "failed_videos")),
            _notes(group, notes),
        ]
        rows.append(tuple(cells))
    paper = tuple(group[0]["source"] == PAPER for group in groups)
    return Grid("All runs", columns, len(words), tuple(rows), paper)


def _details(records: Iterable[Row]) -> Grid:
    words = ("Model", "Method", "Setting", "Benchmark")
    scores = ("Questions", "Videos", "Accuracy", "Relative", "Lost", "Won", "p")
    columns = (*words, *scores, "Kept asked", "Kept", "TTFT", LAYERS, INTO, FAILED, "Also reported")
    rows, paper = [], []
    for record in records:
        if (record["source"] == PAPER and record["ttft_s"] is None) or record["benchmark"] == "Mean":
            continue  # the summary already says all there is
        rows.append(
            (
                _model(record),
                *(Cell(record[key], record[key]) for key in ("method", "setting", "benchmark")),
                count(record["questions"]),
                count(record["videos"]),
                _accuracy(record),
                percent(record["relative"]),
                count(record["lost"]),
                count(record["won"]),
                _number(record["mcnemar_p"], "{:.3f}" if (record["mcnemar_p"] or 1) >= 0.001 else "{:.0e}"),
                percent(record["kept_requested"], 0),
                _kept([record], {}),
                ttft_cell(record["ttft_s"], record["speed_up"]),
                count(record["layer_tokens"]),
                count(record["kept_tokens"]),
                count(record["failed_videos"]),
                Cell(record["also"] or "", record["also"] or None),
            )
        )
        paper.append(record["source"] == PAPER)
    return Grid("By benchmark", columns, len(words), tuple(rows), tuple(paper))


def percent(value: float | None, digits: int = 1) -> Cell:
    return _number(None if value is None else 100 * value, f"{{:.{digits}f}}%")


def count(value: float | None) -> Cell:
    return _number(value, "{:.0f}")


def _number(value: float | None, pattern: str) -> Cell:
    return Cell("") if value is None else Cell(pattern.format(value), value)


def _model(record: Row) -> Cell:
    name = f"{record['model']} (paper)" if record["source"] == PAPER else record["model"]
    return Cell(name, name)


def _accuracy(record: Row) -> Cell:
    accuracy = record["accuracy"]
    if accuracy is None:
        return Cell(record["reported"] or "not scored")
    mark = {"reported": "†", "question": "‡"}.get(record["interval"] or "", "")
    return accuracy_cell(accuracy, record["low"], record["high"], mark)


def accuracy_cell(accuracy: float, low: float | None, high: float | None, mark: str = "") -> Cell:
    """Percent, with the interval behind it."""
    interval = "" if low is None or high is None else f"[{100 * low:.1f}, {100 * high:.1f}]"
    return Cell(f"{100 * accuracy:.1f}{mark}", accuracy, interval)


def _mean_accuracy(measured: Sequence[Row], wanted: int) -> Cell:
    mean = _mean(measured, "accuracy")
    if mean is None:
        return Cell("")
    return Cell(f"{100 * mean:.1f}", mean, f"({len(measured)} of {wanted})" if len(measured) < wanted else "")


def _kept(measured: Sequence[Row], average: Row) -> Cell:
    mean = _mean(measured, "kept_mean")
    if mean is None:
        return percent(average.get("kept_mean"))
    low, high = ([r[key] for r in measured if r[key] is not None] for key in ("kept_min", "kept_max"))
    spread = f"({100 * min(low):.1f}–{100 * max(high):.1f})" if low and high and min(low) < max(high) else ""
    return Cell(f"{100 * mean:.1f}%", mean, spread)


def ttft_cell(seconds: float | None, factor: float | None) -> Cell:
    """Seconds, with the speed-up behind them."""
    if seconds is None:
        return Cell("", factor, f"{factor:.2f}×" if factor else "")
    return Cell(f"{seconds:.3f} s", seconds, f"({factor:.2f}×)" if factor else "")


def _notes(group: Sequence[Row], notes: list[str]) -> Cell:
    """Numbers of the row's notes; a note that holds for some benchmarks only names them."""
    texts: dict[str, list[str]] = {}
    for record in group:
        for text in filter(None, (record["flags"] or "").split("; ")):
            texts.setdefault(text, []).append(record["benchmark"])
    numbers = []
    for text, names in texts.items():
        note = text if len(names) == len(group) else f"{', '.join(names)}: {text}"
        if note not in notes:
            notes.append(note)
        numbers.append(notes.index(note) + 1)
    return Cell("⚠ " + ", ".join(map(str, numbers)), numbers[0]) if numbers else Cell("")


def _mean(rows: Sequence[Row], key: str) -> float | None:
    """Mean of a column, None unless every row has it: a mean over some would compare different things."""
    values = [row[key] for row in rows]
    return fmean(values) if values and None not in values else None


def _total(rows: Sequence[Row], key: str) -> float | None:
    values = [row[key] for row in rows if row[key] is not None]
    return sum(values) if values else None


def _known(value: Any) -> Any:
    """pandas fills gaps with NaN; a gap is None here."""
    return None if isinstance(value, float) and math.isnan(value) else value
