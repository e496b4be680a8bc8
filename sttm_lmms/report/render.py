"""Printing a leaderboard as Markdown, CSV, LaTeX or one HTML file."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sttm_lmms.errors import unknown
from sttm_lmms.report.layout import Board, Cell, make_board
from sttm_lmms.report.templating import render_template

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = {".md": "md", ".csv": "csv", ".html": "html", ".tex": "latex"}
_LATEX = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "×": r"$\times$",
    "–": "--",
    "⚠": r"\textbf{!}",
    "†": r"$^\dagger$",
    "‡": r"$^\ddagger$",
}


def render(
    table: pd.DataFrame,
    format: str,
    *,
    title: str = "Leaderboard",
    plots: Mapping[str, str] | None = None,
    command: str = "",
) -> str:
    """The leaderboard as text, the same for the same runs.

    Args:
        table: from :func:`sttm_lmms.report.table.build_table`.
        format: ``md``, ``csv`` (the tidy table itself), ``latex`` (needs booktabs) or ``html`` (one file, nothing
            loaded from elsewhere).
        plots: caption -> SVG text; HTML only. The first one stands at the top.
        command: how to make it again; everywhere but in CSV.

    Raises:
        ValueError: unknown format.
    """
    if format == "csv":
        return table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    if format not in SUFFIXES.values():
        raise unknown("format", format, SUFFIXES.values())
    return render_board(make_board(table, title, command), format, plots=plots)


def render_board(board: Board, format: str, *, plots: Mapping[str, str] | None = None) -> str:
    """A board as ``md``, ``latex`` or ``html``. Arguments and errors as in :func:`render`."""
    renderers: dict[str, Callable[[], str]] = {
        "md": lambda: _markdown(board),
        "latex": lambda: _latex(board),
        "html": lambda: _html(board, plots or {}),
    }
    if format not in renderers:
        raise unknown("format", format, renderers)
    return renderers[format]()


def format_of(path: Path) -> str:
    """The format that belongs to a file name."""
    if path.suffix not in SUFFIXES:
        raise unknown("file ending", path.suffix, SUFFIXES)
    return SUFFIXES[path.suffix]


def essence(text: str) -> str:
    """What has to be equal in two renderings: all but the plots, whose bytes depend on the version of matplotlib, and
    the command, which names folders."""
    return re.sub(r"Made with .*", "", re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL))


def _markdown(board: Board) -> str:
    blocks = [f"# {board.title}", *board.shared]
    for grid in board.grids:
        lines = ["---"] * grid.words + ["---:"] * (len(grid.columns) - grid.words)
        rows = [[_markdown_cell(cell) for cell in row] for row in grid.rows]
        table = [list(grid.columns), lines, *rows]
        blocks += [f"## {grid.caption}", "\n".join(f"| {' | '.join(row)} |" for row in table)]
    if board.notes:
        blocks.append("Notes:\n\n" + "\n".join(f"{n}. {note}" for n, note in enumerate(board.notes, start=1)))
    made = [f"Made with `{board.command}`"] if board.command else []
    return "\n\n".join([*blocks, *board.legend, *made]) + "\n"


def _markdown_cell(cell: Cell) -> str:
    return cell.text.replace("|", r"\|")


def _latex(board: Board) -> str:
    blocks = [f"% {board.title}; needs \\usepackage{{booktabs}}", *(f"% {line}" for line in board.shared)]
    for grid in board.grids:
        align = "l" * grid.words + "r" * (len(grid.columns) - grid.words)
        body = [_latex_row(grid.columns), r"\midrule", *(_latex_row([c.text for c in row]) for row in grid.rows)]
        lines = [rf"\begin{{tabular}}{{{align}}}", r"\toprule", *body, r"\bottomrule", r"\end{tabular}"]
        blocks.append("\n".join([f"% {grid.caption}", *lines]))
    blocks += [f"% {n}. {note}" for n, note in enumerate(board.notes, start=1)]
    blocks += [f"% {line}" for line in board.legend]
    blocks += [f"% Made with `{board.command}`"] if board.command else []
    return "\n\n".join(blocks) + "\n"


def _latex_row(texts: tuple[str, ...] | list[str]) -> str:
    escaped = ("".join(_LATEX.get(char, char) for char in text) for text in texts)
    return " & ".join(escaped) + r" \\"


def _html(board: Board, plots: Mapping[str, str]) -> str:
    inline = [(caption, svg[svg.index("<svg") :]) for caption, svg in plots.items()]
    return render_template("leaderboard.html.j2", board=board, plots=inline)
