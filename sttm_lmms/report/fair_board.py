"""The fair table as a reader sees it, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from sttm_lmms.report.fair import FairRow, Pair
from sttm_lmms.report.layout import LAYERS, Board, Cell, Grid, accuracy_cell, count, drop_empty, percent, ttft_cell
from sttm_lmms.report.stats import mcnemar_exact

LEGEND = (
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


def fair_board(rows: Sequence[FairRow], *, title: str, command: str = "", reference: str = "sttm") -> Board:
    """The table to be printed: one row a model, method and budget, one column of accuracies for each task."""
    tasks = list(dict.fromkeys(row.task for row in rows))
    groups: dict[tuple[Any, ...], dict[str, FairRow]] = {}
    for row in sorted(rows, key=lambda row: (row.model, -(row.budget or 2.0), row.method != reference)):
        groups.setdefault((row.model, row.budget, row.method), {})[row.task] = row
    notes: list[str] = []
    columns = (
        *("Model", "Method", "Budget", *tasks, "Relative", "Kept", LAYERS, "KV kept"),
        *("TTFT", "GFLOPs", f"Difference to {reference}", "Won", "Lost", "p", "Notes"),
    )
    lines = tuple(_line(list(group.values()), group, tasks, notes) for group in groups.values())
    grid = drop_empty(Grid("All methods", columns, 2, lines, (False,) * len(lines)))
    return Board(title, (grid,), tuple(notes), LEGEND, command, (_conditions(rows), *verdicts(rows)))


def to_json(rows: Sequence[FairRow], command: str = "") -> str:
    """The rows as they are, with the command that made them."""
    return json.dumps({"command": command, "rows": [asdict(row) for row in rows]}, indent=1) + "\n"


def verdicts(rows: Sequence[FairRow]) -> list[str]:
    """A sentence for each method that is more accurate than the reference at some budget; or that none is."""
    better = [row for row in rows if row.against and row.against.difference > 0]
    pairs = [row for row in rows if row.against]
    if not pairs:
        return []
    reference = pairs[0].against.reference if pairs[0].against else ""
    if not better:
        return [f"No method is more accurate than {reference} at the same budget here."]
    said = [
        f"{row.method} at {row.budget:.0%} ({row.model}, {row.task}): {100 * row.against.difference:+.1f} points, "
        f"p = {row.against.p:.2g}"
        for row in better
        if row.against and row.budget is not None
    ]
    return [f"More accurate than {reference} at the same budget: {'; '.join(said)}."]


def _line(
    rows: Sequence[FairRow], by_task: Mapping[str, FairRow], tasks: Sequence[str], notes: list[str]
) -> tuple[Cell, ...]:
    first = rows[0]
    pooled = _pool([row.against for row in rows])
    ttft, flops = _whole(rows, lambda row: row.ttft_s), _whole(rows, lambda row: row.flops)
    factor = _whole(rows, lambda row: row.flops_factor)
    texts = dict.fromkeys(note for row in rows for note in row.notes)
    notes += [text for text in texts if text not in notes]
    numbers = ", ".join(str(notes.index(text) + 1) for text in texts)
    return (
        Cell(first.model, first.model),
        Cell(first.method, first.method),
        percent(first.budget, 0),
        *(_accuracy(by_task.get(task)) for task in tasks),
        percent(_whole(rows, lambda row: row.relative)),
        percent(_whole(rows, lambda row: row.kept_share)),
        _layers(rows),
        percent(_whole(rows, lambda row: row.kv_share)),
        ttft_cell(ttft, _whole(rows, lambda row: row.speed_up)),
        Cell("") if flops is None else Cell(f"{flops / 1e9:#.3g}", flops, f"({factor:.2f}×)" if factor else ""),
        Cell("") if pooled is None else Cell(f"{100 * pooled.difference:+.1f}", pooled.difference),
        count(pooled.won if pooled else None),
        count(pooled.lost if pooled else None),
        Cell("") if pooled is None else Cell(f"{pooled.p:.3f}" if pooled.p >= 0.001 else f"{pooled.p:.0e}", pooled.p),
        Cell(f"⚠ {numbers}" if numbers else ""),
    )


def _accuracy(row: FairRow | None) -> Cell:
    if row is None or row.accuracy is None:
        return Cell("" if row is None else "not scored")
    return accuracy_cell(row.accuracy, row.low, row.high)


def _layers(rows: Sequence[FairRow]) -> Cell:
    tokens, share = _whole(rows, lambda row: row.layer_tokens), _whole(rows, lambda row: row.layer_share)
    return Cell("") if tokens is None or share is None else Cell(f"{tokens:.0f}", tokens, f"({100 * share:.1f}%)")


def _pool(pairs: Sequence[Pair | None]) -> Pair | None:
    """Several tasks as one, each question counted once."""
    known = [pair for pair in pairs if pair is not None]
    if not known or len(known) < len(pairs):
        return None
    won, lost, questions = (sum(getattr(pair, key) for pair in known) for key in ("won", "lost", "questions"))
    difference = sum(pair.difference * pair.questions for pair in known) / questions if questions else 0.0
    return Pair(known[0].reference, difference, won, lost, questions, mcnemar_exact(lost, won))


def _conditions(rows: Sequence[FairRow]) -> str:
    """What was asked, of how many videos; where a run has fewer, its notes say why."""
    most = {row.task: row for row in sorted(rows, key=lambda row: row.questions)}
    said = []
    for task in dict.fromkeys(row.task for row in rows):
        row = most[task]
        said.append(f"{task}: {row.questions} questions" + (f" on {row.videos} videos" if row.videos else ""))
    return "; ".join(said) + "."


def _whole(rows: Sequence[FairRow], value: Callable[[FairRow], float | None]) -> float | None:
    """Mean over the tasks, None unless all have it."""
    values = [value(row) for row in rows]
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None
