"""Features of real views, made once, from which training videos are put together faster than frames can be drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from sttm_lmms.benchmarks.mini.objects import OBJECTS
from sttm_lmms.benchmarks.mini.questions import SIZES

from .shapes import Eye
from .stream import Drawn
from .vision import random_cell


@dataclass(frozen=True)
class Bank:
    """Features in half precision.

    Attributes:
        clips: ``[n, T, cells, C]``, footage at one step a second.
        needles: ``[K, m, cells, C]``, ``m`` single steps for each object with one needle in it.
        cells: ``[K, m]``, the cell of that needle's centre.
    """

    clips: torch.Tensor
    needles: torch.Tensor
    cells: torch.Tensor


@torch.no_grad()
def build_bank(vision: nn.Module, eye: Eye, rng: np.random.Generator, clips: int, per_object: int) -> Bank:
    """Draw footage and needles and run the vision side over them."""
    scenery, grid = eye.scenery, eye.scenery.grid
    made = []
    for _ in range(clips):
        views = eye.clip(rng, scenery.footage(rng, eye.steps))
        made.append(vision(eye.prepare(views, rng)).half())
    needles, cells = [], torch.zeros(len(OBJECTS), per_object, dtype=torch.long)
    scenes = [scenery.scene(rng) for _ in range(64)]
    for index in range(len(OBJECTS)):
        views = []
        for i in range(per_object):
            scenes[int(rng.integers(len(scenes)))] = scenery.scene(rng)
            scene = scenes[int(rng.integers(len(scenes)))]
            size = float(rng.uniform(*SIZES))
            row, column = random_cell(rng, size, grid)
            dx, dy = rng.uniform(-0.25, 0.25, 2)
            x, y = (column + 0.5 + dx) / grid, (row + 0.5 + dy) / grid
            views.append(eye.prepare(eye.paint(rng, eye.view(rng, scene), index, x, y, size), rng))
            cells[index, i] = row * grid + column
        needles.append(vision(torch.cat(views)).half())
    return Bank(torch.stack(made), torch.stack(needles), cells)


def around(cell: int, grid: int) -> torch.Tensor:
    """Cells at most one row and one column apart from ``cell``, itself among them."""
    rows, columns = (torch.arange(max(0, i - 1), min(grid, i + 2)) for i in divmod(cell, grid))
    return (rows[:, None] * grid + columns).flatten()


def compose(rng: np.random.Generator, bank: Bank, drawn: Drawn, steps: int) -> tuple[torch.Tensor, Drawn]:
    """Features ``[T, cells, C]`` of a video with these events, and the events with the places that the bank gave them.

    An inserted needle brings its whole view, an edited one the cells around it.
    """
    clip = bank.clips[int(rng.integers(len(bank.clips)))]
    grid = math.isqrt(clip.shape[1])
    start = int(rng.integers(0, len(clip) - steps + 1))
    features = clip[start : start + steps].clone()
    insert = rng.random() < 0.5
    events = []
    for event in drawn.events:
        choice = int(rng.integers(bank.cells.shape[1]))
        cell = int(bank.cells[event.index, choice])
        cover = slice(None) if insert else around(cell, grid)
        features[event.second, cover] = bank.needles[event.index, choice, cover]
        events.append(replace(event, x=(cell % grid + 0.5) / grid, y=(cell // grid + 0.5) / grid))
    return features.float(), replace(drawn, events=tuple(events))
