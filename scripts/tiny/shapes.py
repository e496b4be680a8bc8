"""What sets the two checkpoints apart; all else of the training is shared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from sttm_lmms.benchmarks.mini.footage import Footage, Scene
from sttm_lmms.benchmarks.mini.objects import GRID

from . import pairs, vision
from .codes import MAX_FRAMES
from .decoder import Positions
from .stream import CELLS, Batch
from .text import PREFIX, SPECIAL


@dataclass(frozen=True)
class Eye:
    """A vision side and what it is shown. A view is one step in time, drawn but not yet degraded, resized, normalised.

    Attributes:
        build: a fresh module, pixels to visual tokens ``[n, 49, C]``.
        batch: pixels, labels and mean colours of training views.
        clip: ``MAX_FRAMES`` views of footage.
        view: one view of a shot.
        paint: the view with an object (index, x, y, size) in it.
        prepare: views to pixels.
    """

    build: Callable[[], nn.Module]
    batch: Callable[[np.random.Generator], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
    clip: Callable[[np.random.Generator, Footage], torch.Tensor]
    view: Callable[[np.random.Generator, Scene], torch.Tensor]
    paint: Callable[[np.random.Generator, torch.Tensor, int, float, float, float], torch.Tensor]
    prepare: Callable[[torch.Tensor, np.random.Generator], torch.Tensor]


@dataclass(frozen=True)
class Shape:
    """One of the two models.

    Attributes:
        family: the model family it belongs to.
        special: special tokens of its tokenizer.
        opening: what stands before the video; lead: what stands between the video and a question.
        eye: its vision side.
        length: draws a video: its steps in time and its seconds.
        time: time of a token, from its step and cell, as far as the decoder can know it.
        positions: of the tokens before the questions, given a batch and the length of the opening; None counts on.
    """

    family: str
    special: tuple[str, ...]
    opening: str
    lead: str
    eye: Eye
    length: Callable[[np.random.Generator], tuple[int, float]]
    time: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    positions: Callable[[Batch, int], Positions | None]


def frame_length(rng: np.random.Generator) -> tuple[int, float]:
    """One frame a second and the last one: 8 to 16 frames."""
    frames = int(rng.integers(8, MAX_FRAMES + 1))
    return frames, frames - 1


def pair_length(rng: np.random.Generator) -> tuple[int, float]:
    """A pair of frames for every full second: 7 to 16 pairs."""
    steps = int(rng.integers(7, MAX_FRAMES + 1))
    return steps, steps + 0.5 * int(rng.integers(2))


def place_in_sequence(step: torch.Tensor, cell: torch.Tensor) -> torch.Tensor:
    """With one axis of positions, time is the place in the full sequence."""
    return step + cell / CELLS - 0.5


def three_axes(batch: Batch, opening: int) -> Positions:
    """Qwen2-VL's positions: a token keeps its step, row and column, whatever has been dropped before it."""
    before = torch.arange(opening, device=batch.step.device).expand(3, len(batch.visual), -1)
    video = opening + torch.stack((batch.step, batch.cell // GRID, batch.cell % GRID))
    return Positions(torch.cat((before, video), -1), opening + max(batch.steps, GRID))


LLAVA_VIDEO = Shape(
    family="llava_video",
    special=SPECIAL,
    opening=PREFIX,
    lead="\n",
    eye=Eye(vision.Vision, vision.frame_batch, vision.clip, vision.view, vision.paint_view, vision.prepare),
    length=frame_length,
    time=place_in_sequence,
    positions=lambda batch, opening: None,
)
QWEN2_VL = Shape(
    family="qwen2_vl",
    special=(
        *SPECIAL,
        *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
    ),
    opening=PREFIX + "<|vision_start|>",
    lead="<|vision_end|>",
    eye=Eye(pairs.PairVision, pairs.pair_batch, pairs.clip, pairs.view, pairs.paint_view, pairs.prepare),
    length=pair_length,
    time=lambda step, cell: step.float(),
    positions=three_axes,
)
SHAPES = {shape.family: shape for shape in (LLAVA_VIDEO, QWEN2_VL)}
