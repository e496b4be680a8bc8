"""The paper's own numbers (arXiv 2507.07990) as table rows. Nothing here was measured by this
package."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from typing import Any

import yaml

SOURCE = "paper"


def paper_rows() -> list[dict[str, Any]]:
    """One dictionary per cell, with the columns of ``table.COLUMNS`` that the paper has.

    A cell's kept share is its tokens / the tokens of the same model's row without reduction. Rows
    for which only the average of TTFT and tokens is known get one more entry, with
    ``benchmark="Mean"``.
    """
    content = _content()
    names = content["benchmarks"]
    full = {row["model"]: row for row in reversed(content["rows"]) if row["method"] == "none"}
    rows = []
    for row in content["rows"]:
        cells = [*row["cells"], *[None] * (len(names) - len(row["cells"]))]
        reference = [*full[row["model"]]["cells"], *[None] * len(names)]
        for name, cell, base in zip(names, cells, reference, strict=False):
            if cell is not None:
                rows.append(_row(row, name, cell, base))
        if "average" in row and all(len(cell) == 1 for cell in cells if cell):
            rows.append(_row(row, "Mean", row["average"], full[row["model"]]["average"]))
    return rows


@lru_cache
def _content() -> dict[str, Any]:
    return yaml.safe_load(files("sttm_lmms.report").joinpath("paper.yaml").read_text(encoding="utf-8"))


def _row(row: dict[str, Any], name: str, cell: list[float], base: list[float]) -> dict[str, Any]:
    accuracy, ttft, tokens = _three(cell)
    base_accuracy, base_ttft, base_tokens = _three(base)
    budget = row.get("budget")
    return {
        "source": SOURCE,
        "model": row["model"],
        "method": row["method"],
        "setting": row.get("setting") or ("all tokens" if budget is None else f"about {budget:.0%}"),
        "benchmark": name,
        "accuracy": accuracy / 100,
        "relative": accuracy / base_accuracy,
        "kept_requested": budget,
        "kept_mean": tokens / base_tokens if tokens and base_tokens else None,
        "kept_tokens": tokens,
        "ttft_s": ttft,
        "speed_up": base_ttft / ttft if ttft and base_ttft else None,
        "also": "",
        "comparable": True,
        "flags": row.get("note", ""),
    }


def _three(cell: list[float]) -> tuple[Any, Any, Any]:
    accuracy, ttft, tokens = [*cell, None, None][:3]
    return accuracy, ttft, tokens
