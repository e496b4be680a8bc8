"""Printing a leaderboard as Markdown, CSV, LaTeX or one HTML file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from sttm_lmms.errors import unknown
from sttm_lmms.report.layout import WORDS, leaderboard_page
from sttm_lmms.report.templating import render_template

SUFFIXES = {".md": "md", ".csv": "csv", ".html": "html", ".tex": "latex"}


def render(
    table: pd.DataFrame,
    format: str,
    *,
    title: str = "Leaderboard",
    plots: Mapping[str, str] | None = None,
    command: str = "",
    reference: str | None = None,
) -> str:
    """The leaderboard as text, the same for the same runs.

    Args:
        table: from :func:`sttm_lmms.report.table.build_table`.
        format: ``md``, ``csv`` (the tidy table itself), ``latex`` (needs booktabs) or ``html`` (one
            file, nothing loaded from elsewhere).
        plots: caption -> SVG text; HTML only. The first one stands at the top.
        command: how to make it again; everywhere but in CSV.
        reference: compare methods at equal budgets with this one; the table was built with it.

    Raises:
        ValueError: unknown format.
    """
    if format == "csv":
        return table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    if format not in SUFFIXES.values():
        raise unknown("format", format, SUFFIXES.values())
    page = leaderboard_page(table, title, command, reference)
    inline = [(caption, svg[svg.index("<svg") :]) for caption, svg in (plots or {}).items()]
    return render_template(f"leaderboard.{format}.j2", page=page, words=WORDS, plots=inline)


def format_of(path: Path) -> str:
    """The format that belongs to a file name."""
    if path.suffix not in SUFFIXES:
        raise unknown("file ending", path.suffix, SUFFIXES)
    return SUFFIXES[path.suffix]


def comparable_text(text: str) -> str:
    """What has to be equal in two renderings: all but the plots, whose bytes depend on the version
    of matplotlib, and the command, which names folders."""
    return re.sub(r"Made with .*", "", re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL))
