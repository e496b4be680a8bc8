"""The fair table: methods at equal budgets, same frames and prompts, each compared with one of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from sttm_lmms.provenance import Provenance
from sttm_lmms.report.compare import Entry, make_entries, pair
from sttm_lmms.report.flops import DecoderShape, prefill_flops
from sttm_lmms.report.runs import Run
from sttm_lmms.report.stats import mcnemar_exact
from sttm_lmms.report.table import build_table

if TYPE_CHECKING:
    import pandas as pd

Shapes = Mapping[str, DecoderShape]


@dataclass(frozen=True)
class Pair:
    """A method against the reference: accuracy minus the reference's, and the questions that decide it."""

    reference: str
    difference: float
    won: int
    lost: int
    questions: int
    p: float


@dataclass(frozen=True)
class FairRow:
    """One method at one budget on one task. Shares, accuracies and differences are fractions, times seconds.

    Attributes:
        layer_tokens, layer_share: visual tokens that a layer attends to, mean over layers and questions; and / all.
        kv_share: KV entries attended to while decoding / all; None where no method edits the cache.
        flops: of a prefill by count, mean over the questions; None if the checkpoint's sizes are not known.
        against: None for the reference itself, for all tokens, and where the reference has no such budget.
    """

    model: str
    method: str
    budget: float | None
    task: str
    questions: int
    videos: int | None
    accuracy: float | None
    low: float | None
    high: float | None
    relative: float | None
    kept_share: float | None
    layer_tokens: float | None
    layer_share: float | None
    kv_share: float | None
    ttft_s: float | None
    speed_up: float | None
    flops: float | None
    flops_factor: float | None
    against: Pair | None
    notes: tuple[str, ...]
    run: str


@dataclass(frozen=True)
class _Tokens:
    """What the layers see of one question: text, visual tokens before and after, the mean over layers."""

    text: int
    visual: int
    kept: int
    layer: float

    def flops(self, shape: DecoderShape) -> float:
        return prefill_flops(shape, text=self.text, visual=self.visual, kept=self.kept, layer_tokens=self.layer)


def fair_rows(runs: Sequence[Run], shapes: Shapes, *, reference: str = "sttm") -> list[FairRow]:
    """One row for each model, method, budget and task, in the order of the leaderboard.

    Args:
        runs: of one grid: for each model all tokens, and methods at budgets.
        shapes: model name -> sizes of its decoder.
        reference: the method that the others are compared with.
    """
    table = build_table(runs)
    entries = {(e.model, e.method, e.setting, e.task.task): e for e in make_entries(runs)}
    rows = []
    for record in _records(table):
        entry = entries[record["model"], record["method"], record["setting"], record["task"]]
        budget = record["kept_requested"] if record["method"] != "none" else None
        shape = shapes.get(entry.model)
        tokens = _tokens(entry, shape)
        rows.append(
            FairRow(
                **{key: record[key] for key in ("model", "method", "task", "accuracy", "low", "high", "relative")},
                budget=budget,
                questions=int(record["questions"]),
                videos=None if record["videos"] is None else int(record["videos"]),
                kept_share=record["kept_mean"],
                layer_tokens=_mean(seen.layer for seen in tokens),
                layer_share=_mean(seen.layer / seen.visual for seen in tokens),
                kv_share=entry.run.summary.kv_share_mean,
                ttft_s=record["ttft_s"],
                speed_up=record["speed_up"],
                flops=_mean(seen.flops(shape) for seen in tokens) if shape else None,
                flops_factor=None,
                against=_against(entry, budget, entries.values(), reference),
                notes=tuple(filter(None, (record["flags"] or "").split("; "))),
                run=record["run"],
            )
        )
    full = {(row.model, row.task): row.flops for row in rows if row.method == "none"}
    return [replace(row, flops_factor=_ratio(full.get((row.model, row.task)), row.flops)) for row in rows]


def _against(entry: Entry, budget: float | None, entries: Iterable[Entry], reference: str) -> Pair | None:
    if entry.method in ("none", reference):
        return None
    same = [
        other
        for other in entries
        if (other.method, other.model, other.task.task) == (reference, entry.model, entry.task.task)
        and _budget(other) == budget
    ]
    if not same:
        return None
    found = pair(entry, same[-1])
    if found.ours is None or found.theirs is None or found.refused:
        return None
    questions = len(entry.task.answered)
    p = mcnemar_exact(found.lost, found.won)
    return Pair(reference, found.ours - found.theirs, found.won, found.lost, questions, p)


def _tokens(entry: Entry, shape: DecoderShape | None) -> list[_Tokens]:
    """Of the answered questions; empty if any of them does not say."""
    found = []
    for sample in entry.task.answered:
        visual, kept, prompt = sample.visual_tokens, sample.kept_tokens, sample.input_tokens
        if not visual or kept is None or prompt is None:
            return []
        layer = sample.layer_tokens or _layer_tokens(entry, visual, kept, shape) or _layer_tokens_of_run(entry)
        if layer is None:
            return []
        found.append(_Tokens(prompt - visual, visual, kept, layer))
    return found


def _layer_tokens(entry: Entry, visual: int, kept: int, shape: DecoderShape | None) -> float | None:
    """For runs that did not log it: from the layer in front of which the method reduced."""
    if entry.method == "none":
        return float(visual)
    start = (entry.task.provenance or Provenance()).settings.get("start_layer")
    if shape is None or start is None:
        return None
    return (start * visual + (shape.layers - start) * kept) / shape.layers


def _layer_tokens_of_run(entry: Entry) -> float | None:
    """The run's mean, where it is one of this task alone."""
    return entry.run.summary.layer_tokens_mean if len(entry.run.tasks) == 1 else None


def _budget(entry: Entry) -> float | None:
    try:
        return float(entry.run.model_args.get("budget", ""))
    except ValueError:
        return None


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    records = table.astype(object).where(table.notna(), None).to_dict("records")
    return [{str(key): value for key, value in record.items()} for record in records]


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return fmean(known) if known else None


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above and below else None
