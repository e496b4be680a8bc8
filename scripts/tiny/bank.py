"""Features of real frames, made once, from which training videos are put together faster than frames can be drawn."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from sttm_lmms.benchmarks.mini.footage import random_footage, random_scene
from sttm_lmms.benchmarks.mini.objects import GRID, OBJECTS, paint
from sttm_lmms.benchmarks.mini.questions import SIZES

from .codes import MAX_FRAMES
from .stream import CELLS, Drawn
from .vision import IMAGE, Vision, degrade, random_cell


@dataclass(frozen=True)
class Bank:
    """Features in half precision.

    Attributes:
        clips: ``[n, 16, 49, C]``, footage at one frame a second.
        needles: ``[K, m, 49, C]``, ``m`` single frames for each object with one needle in it.
        cells: ``[K, m]``, the cell of that needle's centre.
    """

    clips: torch.Tensor
    needles: torch.Tensor
    cells: torch.Tensor


@torch.no_grad()
def build_bank(vision: Vision, rng: np.random.Generator, clips: int, per_object: int) -> Bank:
    """Draw footage and needles and run the vision side over them."""
    made = []
    for _ in range(clips):
        footage = random_footage(rng, MAX_FRAMES)
        made.append(see(vision, footage.render(np.arange(MAX_FRAMES) + 0.01, IMAGE, IMAGE), rng))
    needles, cells = [], torch.zeros(len(OBJECTS), per_object, dtype=torch.long)
    scenes = [random_scene(rng) for _ in range(64)]
    for index in range(len(OBJECTS)):
        frames = []
        for i in range(per_object):
            scenes[int(rng.integers(len(scenes)))] = random_scene(rng)
            scene = scenes[int(rng.integers(len(scenes)))]
            size = float(rng.uniform(*SIZES))
            row, column = random_cell(rng, size)
            dx, dy = rng.uniform(-0.25, 0.25, 2)
            frame = scene.render(torch.tensor([float(rng.uniform(0, 8))]), IMAGE, IMAGE)
            frames.append(paint(frame, index, (column + 0.5 + dx) / GRID, (row + 0.5 + dy) / GRID, size))
            cells[index, i] = row * GRID + column
        needles.append(see(vision, torch.cat(frames), rng))
    return Bank(torch.stack(made), torch.stack(needles), cells)


def see(vision: Vision, frames: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    return vision(degrade(frames, rng) * 2 - 1).half()


def neighbourhood() -> torch.Tensor:
    """``[49, 49]``: cells at most one row and one column apart."""
    index = torch.arange(CELLS)
    row, column = index // GRID, index % GRID
    return ((row[:, None] - row[None]).abs() <= 1) & ((column[:, None] - column[None]).abs() <= 1)


NEAR = neighbourhood()


def compose(rng: np.random.Generator, bank: Bank, drawn: Drawn, frames: int) -> tuple[torch.Tensor, Drawn]:
    """Features ``[T, 49, C]`` of a video with these events, and the events with the places that the bank gave them.

    An inserted needle brings its whole frame, an edited one the cells around it.
    """
    clip = bank.clips[int(rng.integers(len(bank.clips)))]
    start = int(rng.integers(0, MAX_FRAMES - frames + 1))
    features = clip[start : start + frames].clone()
    insert = rng.random() < 0.5
    events = []
    for event in drawn.events:
        choice = int(rng.integers(bank.cells.shape[1]))
        cell = int(bank.cells[event.index, choice])
        cover = slice(None) if insert else NEAR[cell]
        features[event.second, cover] = bank.needles[event.index, choice, cover]
        events.append(replace(event, x=(cell % GRID + 0.5) / GRID, y=(cell // GRID + 0.5) / GRID))
    return features.float(), replace(drawn, events=tuple(events))
