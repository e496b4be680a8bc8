"""From the tidy table to what a reader sees: a summary grid, a detail grid, notes and a legend."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from sttm_lmms.report.paper import SOURCE as PAPER
from sttm_lmms.report.table import BENCHMARKS, benchmark_order

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
LEGEND = (
    "Accuracy in percent with its 95% interval, clustered by video (Wilson's interval at the effective sample size); "
    "† is the run's own standard error, ‡ an interval that takes questions as independent because no video was logged.",
    "Relative: accuracy / accuracy of the same model without reduction on the questions both answered; over several "
    "benchmarks the mean of the ratios, as is the speed-up. Lost and won: questions that only the baseline, only the "
    "run answered right; p: exact McNemar test, which takes questions as independent.",
    "Kept: visual tokens after / before reduction, asked for and achieved: mean (min–max over questions).",
    "TTFT: seconds of the decoder's first pass over the whole prompt, without video decoding and vision encoder.",
)
PAPER_LEGEND = "Rows marked (paper) are the numbers printed in arXiv 2507.07990, measured by its authors on an A100."


@dataclass(frozen=True)
class Cell:
    """``text`` is shown, ``sort`` is compared (None sorts last)."""

    text: str
    sort: float | str | None = None


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
    """Everything a rendered leaderboard says; ``command`` is how to make it again, empty if unknown."""

    title: str
    grids: tuple[Grid, ...]
    notes: tuple[str, ...]
    legend: tuple[str, ...]
    command: str = ""


def make_board(table: pd.DataFrame, title: str = "Leaderboard", command: str = "") -> Board:
    """Lay out a table of :func:`sttm_lmms.report.table.build_table`."""
    records = [{key: _known(value) for key, value in record.items()} for record in table.to_dict("records")]
    groups: dict[tuple[str, ...], list[Row]] = {}
    for record in records:
        groups.setdefault((record["source"], record["model"], record["method"], record["setting"]), []).append(record)
    notes: list[str] = []
    has_paper = any(record["source"] == PAPER for record in records)
    legend = (*LEGEND, PAPER_LEGEND) if has_paper else LEGEND
    # The summary comes first: it numbers the notes.
    grids = (_summary(list(groups.values()), notes), _details(records))
    return Board(title, grids, tuple(notes), legend, command)


def _summary(groups: Sequence[Sequence[Row]], notes: list[str]) -> Grid:
    names = sorted({r["benchmark"] for group in groups for r in group} - {"Mean"}, key=benchmark_order)
    averaged = [name for name in names if name in BENCHMARKS] or names
    mean = ["Mean"] if len(averaged) > 1 else []
    words, costs = ("Model", "Method", "Setting", "Notes"), ("Kept asked", "Kept", "TTFT s", "Speed-up")
    columns = (*words, *names, *mean, "Relative", *costs, "Failed videos")
    rows = []
    for group in groups:
        by_name = {record["benchmark"]: record for record in group}
        first, average = group[0], by_name.get("Mean", {})
        measured = [by_name[name] for name in averaged if name in by_name]
        cells = [_model(first), Cell(first["method"], first["method"]), Cell(first["setting"], first["setting"])]
        cells.append(_notes(group, notes))
        cells += [_accuracy(by_name[name]) if name in by_name else Cell("") for name in names]
        if mean:
            cells.append(_mean_accuracy(measured, len(averaged)))
        cells += [
            percent(_mean(measured, "relative")),
            percent(_mean(measured, "kept_requested"), 0),
            _kept(measured, average),
            seconds(_mean(measured, "ttft_s") or average.get("ttft_s")),
            times(_mean(measured, "speed_up") or average.get("speed_up")),
            count(_total(measured, "failed_videos")),
        ]
        rows.append(tuple(cells))
    paper = tuple(group[0]["source"] == PAPER for group in groups)
    return Grid("All runs", columns, len(words), tuple(rows), paper)


def _details(records: Iterable[Row]) -> Grid:
    words = ("Model", "Method", "Setting", "Benchmark")
    scores = ("Questions", "Videos", "Accuracy", "Relative", "Lost", "Won", "p")
    columns = (*words, *scores, "Kept", "TTFT s", "Speed-up", "Failed videos", "Also reported")
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
                _kept([record], {}),
                seconds(record["ttft_s"]),
                times(record["speed_up"]),
                count(record["failed_videos"]),
                Cell(record["also"] or "", record["also"] or None),
            )
        )
        paper.append(record["source"] == PAPER)
    return Grid("By benchmark", columns, len(words), tuple(rows), tuple(paper))


def percent(value: float | None, digits: int = 1) -> Cell:
    return _number(None if value is None else 100 * value, f"{{:.{digits}f}}%")


def seconds(value: float | None) -> Cell:
    return _number(value, "{:.3f}")


def times(value: float | None) -> Cell:
    return _number(value, "{:.2f}×")


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
        return Cell("not scored")
    mark = {"reported": "†", "question": "‡"}.get(record["interval"] or "", "")
    text = f"{100 * accuracy:.1f}{mark}"
    if record["low"] is not None:
        text += f" [{100 * record['low']:.1f}, {100 * record['high']:.1f}]"
    return Cell(text, accuracy)


def _mean_accuracy(measured: Sequence[Row], wanted: int) -> Cell:
    mean = _mean(measured, "accuracy")
    if mean is None:
        return Cell("")
    return Cell(f"{100 * mean:.1f}" + (f" ({len(measured)} of {wanted})" if len(measured) < wanted else ""), mean)


def _kept(measured: Sequence[Row], average: Row) -> Cell:
    mean = _mean(measured, "kept_mean")
    if mean is None:
        return percent(average.get("kept_mean"))
    low, high = ([r[key] for r in measured if r[key] is not None] for key in ("kept_min", "kept_max"))
    spread = f" ({100 * min(low):.1f}–{100 * max(high):.1f})" if low and high else ""
    return Cell(f"{100 * mean:.1f}%{spread}", mean)


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
