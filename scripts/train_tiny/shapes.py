"""What sets the two checkpoints apart; all else of the training is shared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import nn

from sttm_lmms.benchmarks.mini.footage import Footage, Scene
from sttm_lmms.benchmarks.mini.objects import GRID
from sttm_lmms.benchmarks.mini.scenery import PLAIN, TEXTURED, Scenery

from . import pairs, vision
from .codes import MAX_FRAMES, Codes, make_codes, make_spread_codes
from .decoder import Positions
from .stream import Batch
from .text import PREFIX, SPECIAL


@dataclass(frozen=True)
class Eye:
    """A vision side and what it is shown. A view is one step in time, drawn but not yet degraded, resized, normalised.

    Attributes:
        scenery: what it is shown; steps: in time, at most.
        build: a fresh module, pixels to visual tokens ``[n, cells, C]``.
        batch: pixels, labels and mean colours of training views.
        clip: ``steps`` views of footage.
        view: one view of a shot.
        paint: the view with an object (index, x, y, size) in it.
        prepare: views to pixels.
    """

    scenery: Scenery
    steps: int
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
        eye: its vision side; codes: the directions that it writes.
        length: draws a video: its steps in time and its seconds.
        time: time of a token, from its step and its place in the step as a share, as far as the decoder can know it.
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
    codes: Callable[[], Codes] = make_codes

    @property
    def grid(self) -> int:
        """Cells a side of a step."""
        return self.eye.scenery.grid


def frame_length(rng: np.random.Generator, least: int = 8, most: int = MAX_FRAMES) -> tuple[int, float]:
    """One frame a second and the last one: by default 8 to 16 frames."""
    frames = int(rng.integers(least, most + 1))
    return frames, frames - 1


def pair_length(rng: np.random.Generator) -> tuple[int, float]:
    """A pair of frames for every full second: 7 to 16 pairs."""
    steps = int(rng.integers(7, MAX_FRAMES + 1))
    return steps, steps + 0.5 * int(rng.integers(2))


def place_in_sequence(step: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """With one axis of positions, time is the place in the full sequence."""
    return step + share - 0.5


def three_axes(batch: Batch, opening: int) -> Positions:
    """Qwen2-VL's positions: a token keeps its step, row and column, whatever has been dropped before it."""
    before = torch.arange(opening).expand(3, len(batch.visual), -1)
    video = opening + torch.stack((batch.step, batch.cell // GRID, batch.cell % GRID))
    return Positions(torch.cat((before, video), -1), opening + max(batch.steps, GRID))


def frame_eye(scenery: Scenery, steps: int, batch: int, shots: int) -> Eye:
    """Of the LLaVA-Video-shaped models; training views come ``batch`` at a time, from so many shots."""
    grid = scenery.grid
    return Eye(
        scenery=scenery,
        steps=steps,
        build=partial(vision.Vision, grid),
        batch=partial(vision.frame_batch, scenery=scenery, batch=batch, shots=shots),
        clip=partial(vision.clip, grid=grid, steps=steps),
        view=partial(vision.view, grid=grid),
        paint=partial(vision.paint_view, grid=grid),
        prepare=vision.prepare,
    )


LLAVA_VIDEO = Shape(
    family="llava_video",
    special=SPECIAL,
    opening=PREFIX,
    lead="\n",
    eye=frame_eye(TEXTURED, MAX_FRAMES, 64, 16),
    length=frame_length,
    time=place_in_sequence,
    positions=lambda batch, opening: None,
)
LLAVA_VIDEO_FINE = replace(
    LLAVA_VIDEO,
    eye=frame_eye(PLAIN, 8, 8, 8),
    length=partial(frame_length, least=6, most=8),
    codes=make_spread_codes,
)
"""The same at 14x14 tokens a frame, on plain footage."""
QWEN2_VL = Shape(
    family="qwen2_vl",
    special=(
        *SPECIAL,
        *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
    ),
    opening=PREFIX + "<|vision_start|>",
    lead="<|vision_end|>",
    eye=Eye(
        TEXTURED,
        MAX_FRAMES,
        pairs.PairVision,
        pairs.pair_batch,
        pairs.clip,
        pairs.view,
        pairs.paint_view,
        pairs.prepare,
    ),
    length=pair_length,
    time=lambda step, share: step.float(),
    positions=three_axes,
)
SHAPES = {"llava_video": LLAVA_VIDEO, "qwen2_vl": QWEN2_VL, "llava_video_fine": LLAVA_VIDEO_FINE}
