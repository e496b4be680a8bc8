"""Pyramid reduction: in front of several layers every frame is resampled to a smaller grid, nearest
neighbour.

A baseline of STTM's paper (arXiv 2507.07990) in the manner of PyramidDrop (arXiv 2410.17247), blind
to content.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch

from sttm_lmms.config import check_choice, check_integer, check_number
from sttm_lmms.methods import register_method
from sttm_lmms.methods.base import (
    BudgetWarning,
    DecodePositions,
    Method,
    Probe,
    Stage,
    State,
    from_published,
    max_tokens,
)
from sttm_lmms.types import Kept, Tokens


@register_method("pyramid")
@dataclass(frozen=True, kw_only=True)
class PyramidConfig(Method):
    """Settings of pyramid reduction. Give either ``sizes`` or a ``budget``.

    Attributes:
        layers: in front of which layers frames shrink, ascending.
        sizes: sides n of the n x n grid that a frame has from each of these layers on. A size above
            the current grid, on which the published code crashes, is refused.
        budget: share of the tokens that are left after the last of ``layers``, in (0, 1]; each
            layer removes the same share. Sizes are the nearest within it, of the frame's own shape.
            At least one token a frame is kept.
        decode_positions: see :class:`~sttm_lmms.methods.base.LayerMethod`.

    Raises:
        ValueError: a value is out of range, or not exactly one of sizes and budget is given.
    """

    layers: tuple[int, ...] = (2,)
    sizes: tuple[int, ...] | None = None
    budget: float | None = None
    decode_positions: DecodePositions = "continue"

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", _integers("layers", self.layers, 0))
        if not self.layers or list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"layers={self.layers} must be one or more layers in ascending order")
        if (self.sizes is None) == (self.budget is None):
            raise ValueError("give either sizes (one for each of layers) or budget (share kept)")
        if self.budget is not None:
            check_number("budget", self.budget, 0.0, 1.0, low_open=True)
        else:
            object.__setattr__(self, "sizes", _integers("sizes", self.sizes, 1))
            assert self.sizes is not None
            if len(self.sizes) != len(self.layers):
                raise ValueError(f"sizes={self.sizes} must have one size for each of layers={self.layers}")
        check_choice("decode_positions", self.decode_positions, get_args(DecodePositions))

    @classmethod
    def published(cls, **settings: Any) -> PyramidConfig:
        """From ``sa_pyrd_loc_list``, ``sa_pyrd_size_list``."""
        names = {"sa_pyrd_loc_list": "layers", "sa_pyrd_size_list": "sizes"}
        return cls(**from_published(settings, names), decode_positions="reference")

    def stages(self, layers: int) -> Sequence[int | Stage]:
        return self.layers

    def reduce(self, tokens: Tokens, layer: int, probe: Probe, state: State) -> Kept:
        """Take row ``i * h // n`` of h rows for each of n new ones, and columns alike."""
        stage = self.layers.index(layer)
        grids = self._grids(tokens.grid)
        (h, w), (rows, columns) = grids[stage], grids[stage + 1]
        frames, device = tokens.grid[0], tokens.features.device
        if len(tokens) != frames * h * w:
            raise ValueError(
                f"{len(tokens)} tokens are not the {frames}x{h}x{w} grid expected in front of layer {layer}"
            )
        if rows > h or columns > w:
            raise ValueError(f"sizes={self.sizes}: {rows} is more than the {h}x{w} grid in front of layer {layer}")
        t = torch.arange(frames, device=device)[:, None, None]
        y = torch.arange(rows, device=device)[:, None] * h // rows
        x = torch.arange(columns, device=device) * w // columns
        return Kept.select(tokens, ((t * h + y) * w + x).flatten())

    def _grids(self, grid: tuple[int, int, int]) -> list[tuple[int, int]]:
        """The frame's (rows, columns) before and after each stage."""
        _, height, width = grid
        if self.sizes is not None:
            return [(height, width), *((n, n) for n in self.sizes)]
        assert self.budget is not None
        if 1 / (height * width) > self.budget:
            warnings.warn(
                f"budget={self.budget} is less than one token a frame of {height}x{width}, the least that is kept",
                BudgetWarning,
                stacklevel=3,
            )
        stages = len(self.layers)
        grids = [(height, width)]
        for stage in range(1, stages + 1):
            share = self.budget if stage == stages else self.budget ** (stage / stages)
            grids.append(nearest_size(grids[-1], grids[0], share))
        return grids


def nearest_size(current: tuple[int, int], whole: tuple[int, int], share: float) -> tuple[int, int]:
    """The largest (rows, columns) within ``share`` of the ``whole`` grid and within ``current``.

    Rows and columns shrink alike: as near to the shape of the whole grid as whole numbers allow, to
        one step.
    """
    height, width = whole
    most = max_tokens(share, height * width)
    inside = [
        (rows * columns, rows, columns)
        for rows in range(1, current[0] + 1)
        for columns in range(1, current[1] + 1)
        if rows * columns <= most and abs(rows * width - columns * height) <= max(height, width)
    ]
    return max(inside)[1:] if inside else (1, 1)


def _integers(name: str, value: Any, low: int) -> tuple[int, ...]:
    numbers = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    for number in numbers:
        check_integer(name, number, low)
    return numbers
