"""The training loop that all stages share: schedule, clipping, logging, and resuming where a stage
was stopped."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

Report = tuple[torch.Tensor, dict[str, float]]
"""A loss and what is logged beside it."""
Step = Callable[[int, np.random.Generator], Report]


@dataclass(frozen=True)
class Schedule:
    """Steps of a stage, its peak learning rate, warm-up and how the rate ends.

    Attributes:
        steps: optimizer steps.
        rate: peak learning rate, reached after ``warmup`` steps.
        final: share of the peak that the cosine ends on.
    """

    steps: int
    rate: float
    warmup: int = 50
    final: float = 0.02

    def scaled(self, scale: float) -> Schedule:
        return replace(self, steps=max(1, round(self.steps * scale)))

    def at(self, step: int) -> float:
        """The learning rate of a step."""
        wave = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.rate * min(1.0, (step + 1) / self.warmup) * (self.final + (1 - self.final) * wave)


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a file that is never half there."""
    partial = path.with_suffix(".tmp")
    torch.save(state, partial)
    partial.replace(path)


def train_stage(
    name: str,
    schedule: Schedule,
    module: nn.Module,
    parameters: Iterable[nn.Parameter],
    step_fn: Step,
    folder: Path,
    *,
    seed: int,
    every: int = 50,
) -> None:
    """Train ``module`` in place; a stage that was interrupted goes on from ``{name}.pt`` in
    ``folder``.

    The random stream of a step depends on (seed, step) alone, so that a resumed run sees what an
    unbroken one sees. ``every`` so many steps the state is kept and the log gets a JSON line:
    running means of what ``step_fn`` reports.
    """
    trained = list(parameters)
    optimizer = torch.optim.AdamW(trained, lr=schedule.rate, betas=(0.9, 0.98), weight_decay=0.01)
    path = folder / f"{name}.pt"
    first = 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        first = int(state["step"])
    means: dict[str, float] = {}
    began = time.monotonic()
    for step in range(first, schedule.steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.at(step)
        loss, report = step_fn(step, np.random.default_rng((seed, step)))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        for key, value in {"loss": loss.item(), **report}.items():
            means[key] = value if key not in means else 0.95 * means[key] + 0.05 * value
        done = step + 1
        if done % every == 0 or done == schedule.steps:
            line = {"stage": name, "step": done, "seconds": round(time.monotonic() - began, 1)}
            line |= {key: round(value, 4) for key, value in sorted(means.items())}
            with (folder / "train.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(line, flush=True)
            save(path, {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "step": done})
