"""Accuracy against kept share and against TTFT, in panels by benchmark, or by model where there is
one benchmark."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sttm_lmms.errors import STTMError
from sttm_lmms.report.paper import SOURCE as PAPER
from sttm_lmms.report.table import benchmark_order

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

MARKERS = "osD^vPX<>h"
MIN_SPAN = 10.0
SHIFT = 0.008


@dataclass(frozen=True)
class Axis:
    """One plot: a column of the tidy table on the x axis."""

    column: str
    label: str
    scale: float
    name: str
    caption: str


AXES = (
    Axis(
        "kept_mean",
        "kept visual tokens (%)",
        100.0,
        "accuracy_vs_kept",
        "Accuracy against the kept share of visual tokens (methods at equal shares stand side by side)",
    ),
    Axis("ttft_s", "time to first token (s)", 1.0, "accuracy_vs_ttft", "Accuracy against the time to the first token"),
)
CAPTIONS = {axis.name: axis.caption for axis in AXES}


def draw_plots(table: pd.DataFrame) -> dict[str, Figure]:
    """File name -> figure, for every axis that the table has numbers for.

    Bars are the 95% intervals of the table, dashed lines the accuracy without reduction, hollow
    points the paper's. Runs that are not comparable with their baseline are faint and joined to
    nothing. Where methods would hide each other (equal budgets), each moves sideways by less than a
    hundredth of the axis for each method. The legend stands below the panels, so that no label
    covers a point.

    Raises:
        STTMError: matplotlib is missing.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise STTMError('plots need matplotlib: pip install "sttm-lmms[plot]"') from error
    return {axis.name: figure for axis in AXES if (figure := _draw(table, axis)) is not None}


def to_svg(figure: Figure, name: str) -> str:
    """SVG text without date and random ids."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def save_plots(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Write each figure as PNG and SVG; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in figures.items():
        png, svg = folder / f"{name}.png", folder / f"{name}.svg"
        figure.savefig(png, dpi=150, metadata={"Software": None})
        svg.write_text(to_svg(figure, name), encoding="utf-8")
        written += [png, svg]
    return written


def _draw(table: pd.DataFrame, axis: Axis) -> Figure | None:
    from matplotlib.figure import Figure

    shown = table[table["accuracy"].notna() & table[axis.column].notna() & (table["benchmark"] != "Mean")]
    if shown.empty:
        return None
    by = "benchmark" if shown["benchmark"].nunique() > 1 else "model"
    shown = shown.assign(series=_series(shown, by))
    titles = sorted(set(shown[by]), key=benchmark_order)
    columns = min(3, len(titles))
    rows = -(-len(titles) // columns)
    styles = _styles(shown)
    legend_columns = max(2, columns)
    legend_rows = -(-len(styles) // legend_columns)
    size = (max(4.6 * columns, 7.0), 3.4 * rows + 0.3 * legend_rows + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    handles: dict[str, Any] = {}
    for panel, title in zip(panels, titles, strict=False):
        _panel(panel, shown[shown[by] == title], axis, styles, handles)
        panel.set_title(title if by == "benchmark" else f"{title} on {shown['benchmark'].iloc[0]}")
    for panel in panels[len(titles) :]:
        panel.set_visible(False)
    order = [name for name in styles if name in handles]
    named = [handles[name] for name in order]
    figure.legend(named, order, loc="outside lower center", ncols=legend_columns, frameon=False)
    return figure


def _panel(
    panel: Any, rows: pd.DataFrame, axis: Axis, styles: Mapping[str, dict[str, Any]], handles: dict[str, Any]
) -> None:
    shifts = _shifts(rows, axis)
    for name, series in rows.groupby("series", sort=False):
        points = series.sort_values(axis.column)
        x, y = points[axis.column] * axis.scale + shifts[str(name)], points["accuracy"] * 100
        error = None
        if points["low"].notna().all():
            error = [(points["accuracy"] - points["low"]) * 100, (points["high"] - points["accuracy"]) * 100]
        handles[str(name)] = panel.errorbar(x, y, yerr=error, capsize=2, elinewidth=0.8, **styles[str(name)])
        if (points["method"] == "none").all():
            panel.axhline(y.iloc[-1], linewidth=0.7, linestyle="--", color=styles[str(name)]["color"], alpha=0.5)
    panel.set_xlabel(axis.label)
    panel.set_ylabel("accuracy (%)")
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
    panel.set_xlim(left=0, right=105 if axis.scale == 100 else None)
    low, high = panel.get_ylim()
    if high - low < MIN_SPAN:
        # A tenth of a point must not look like a cliff.
        middle = (low + high) / 2
        panel.set_ylim(middle - MIN_SPAN / 2, middle + MIN_SPAN / 2)


def _shifts(rows: pd.DataFrame, axis: Axis) -> dict[str, float]:
    """How far each series moves sideways: not at all, unless points of several methods would hide
    each other."""
    reduced = rows[rows["method"] != "none"]
    names = list(dict.fromkeys(reduced["series"]))
    width = 100.0 if axis.scale == 100 else float(rows[axis.column].max())
    places = reduced.groupby("series")[axis.column].agg(lambda x: set((x * axis.scale / width * 50).round()))
    crowded = sum(map(len, places)) > len(set().union(*places))
    steps = [(number - (len(names) - 1) / 2) * crowded for number in range(len(names))]
    return {
        **dict.fromkeys(rows["series"], 0.0),
        **dict(zip(names, (SHIFT * width * step for step in steps), strict=True)),
    }


def _series(rows: pd.DataFrame, by: str) -> pd.Series:
    """Name of the series of each row: model (unless each has its panel) and method; what is not
    comparable apart."""
    model = rows["model"] + ", " if by == "benchmark" else ""
    paper = rows["source"].map(lambda source: " (paper)" if source == PAPER else "")
    apart = rows["comparable"].map(lambda comparable: "" if comparable else ", not comparable")
    return model + rows["method"] + paper + apart


def _styles(rows: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Colour and marker by series: a star without reduction, hollow for the paper, faint if not
    comparable."""
    styles: dict[str, dict[str, Any]] = {}
    for n, name in enumerate(dict.fromkeys(rows["series"])):
        first = rows[rows["series"] == name].iloc[0]
        paper, baseline = first["source"] == PAPER, first["method"] == "none"
        style: dict[str, Any] = {
            "color": f"C{n % 10}",
            "marker": "*" if baseline else MARKERS[(n + n // 10) % len(MARKERS)],
        }
        style.update(markersize=11 if baseline else 6, zorder=4 if baseline else 3, linewidth=1.2)
        style["linestyle"] = ":" if paper else "-"
        if paper:
            style["markerfacecolor"] = "white"
        if not first["comparable"]:
            style.update(linestyle="none", alpha=0.4)
        styles[name] = style
    return styles
