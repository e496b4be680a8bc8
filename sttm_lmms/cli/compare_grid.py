"""The runs behind the table of ``sttm-lmms compare``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

from sttm_lmms.benchmarks.presets import resolve_frames
from sttm_lmms.families import get_family
from sttm_lmms.families.base import Family
from sttm_lmms.methods import get_method


@dataclass(frozen=True)
class PlannedRun:
    """One run to make, which is one row of the table for each of its tasks.

    Attributes:
        model: model id for lmms-eval.
        model_args: without method and budget.
        method, budget: ``"none"`` and None keep all tokens.
        label: says how the run differs from others of this method and budget, such as
            ``frames-8``; part of the folder's name.
    """

    model: str
    model_args: str
    method: str = "none"
    budget: float | None = None
    label: str = ""

    @property
    def name(self) -> str:
        """Of the run's folder below the model's."""
        budget = "" if self.budget is None else f"{self.budget:g}"
        return "-".join(filter(None, (self.method.replace(":", "."), budget, self.label)))

    @property
    def arguments(self) -> str:
        if self.budget is None:
            return f"{self.model_args},method={self.method}"
        # Else a video whose lowest thresholds keep more than the budget would not be compared at it.
        floor = ",floor=join" if "floor" in settings_of(self.method) else ""
        return f"{self.model_args},method={self.method},budget={self.budget:g}{floor}"

    @property
    def checkpoint(self) -> str:
        return pretrained(self.model_args)


def make_grid(models: Iterable[tuple[str, str]], methods: Sequence[str], budgets: Sequence[float]) -> list[PlannedRun]:
    """Model by model: all tokens, then each method at each budget.

    This is the place to add a row. A column is added in :mod:`sttm_lmms.report.table`, where its
    numbers come from, and :mod:`sttm_lmms.report.layout`, where it is written.
    """
    grid = []
    for model, args in models:
        grid.append(PlannedRun(model, args))
        grid += [PlannedRun(model, args, method, budget) for method in methods for budget in budgets]
    return grid


def make_controls(
    models: Iterable[tuple[str, str]], budgets: Sequence[float], task: str
) -> tuple[list[PlannedRun], list[str]]:
    """Runs without reduction: fewer and smaller frames at the input for each budget, frames half a
    step later, no video; and which of them are not possible, in words."""
    runs, impossible = [], []
    for model, args in models:
        family, given = get_family(model.removeprefix("sttm_")), dict(part.split("=", 1) for part in args.split(","))
        for budget in budgets:
            changes = {
                "fewer-frames": fewer_frames(family, given, task, budget),
                "smaller-frames": smaller_frames(family, given, budget),
            }
            for label, changed in changes.items():
                if changed:
                    runs.append(PlannedRun(model, _with(given, changed), label=f"{label}-{budget:g}"))
                else:
                    impossible.append(f"Not possible: {label} at {budget:.0%} ({pretrained(args)}).")
        runs.append(PlannedRun(model, _with(given, {"phase": 0.5}), label="half-a-step-later"))
        runs.append(PlannedRun(model, _with(given, {"video": "none"}), label="no-video"))
    return runs, impossible


def fewer_frames(family: Family, given: Mapping[str, str], task: str, budget: float) -> dict[str, object]:
    """Arguments for the share ``budget`` of the frames; none where that is less than one token
    stands for."""
    usual = resolve_frames(family.name, task)
    limit, fps = int(given.get("max_frames", usual.max_frames)), float(given.get("fps", usual.fps))
    unit = 2 if family.pixel_limits else 1  # a token of the Qwen families stands for a pair of frames
    fewer = unit * math.floor(budget * limit / unit + 1e-9)
    # The rate too: a video that is shorter than the limit is to have fewer frames as well.
    return {"max_frames": fewer, "fps": f"{budget * fps:g}"} if fewer else {}


def smaller_frames(family: Family, given: Mapping[str, str], budget: float) -> dict[str, object]:
    """Arguments for the share ``budget`` of the pixels; none for families whose frames have one
    size, and where ``max_pixels`` is not given."""
    if not family.pixel_limits or "max_pixels" not in given:
        return {}
    most = int(budget * int(given["max_pixels"]))
    return {"min_pixels": min(most, int(given.get("min_pixels", most))), "max_pixels": most}


def settings_of(method: str) -> set[str]:
    """Names of a method's settings."""
    return {field.name for field in fields(get_method(method))}


def pretrained(model_args: str) -> str:
    """The checkpoint in ``--model_args``."""
    pairs = (part.partition("=") for part in model_args.split(","))
    return next(value.strip() for name, _, value in pairs if name.strip() == "pretrained")


def _with(given: Mapping[str, str], changes: Mapping[str, object]) -> str:
    """``--model_args`` with these arguments changed or added."""
    return ",".join(f"{name}={value}" for name, value in {**given, **changes}.items())
