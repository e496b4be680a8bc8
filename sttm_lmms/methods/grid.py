"""Control: a regular grid over the video, of which one token a cell stays, or the mean of each
cell.

The strided sampling and block pooling that SimpleCluster's paper (arXiv 2609.35394) compares with;
it gives neither cells nor code, so this definition is ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, get_args

import torch

from sttm_lmms.config import check_choice, check_integer, check_number
from sttm_lmms.methods import register_method
from sttm_lmms.methods.base import LayerMethod, Probe, State, check_exactly_one, from_published, max_tokens
from sttm_lmms.methods.ops import group_means
from sttm_lmms.types import Kept, Tokens

Kind = Literal["sampling", "pooling"]


@register_method("grid")
@dataclass(frozen=True, kw_only=True)
class GridConfig(LayerMethod):
    """Settings of grid sampling and pooling. Give ``stride`` or ``budget``.

    Attributes:
        kind: ``"sampling"`` keeps the first token of each cell, ``"pooling"`` the mean of its
            tokens.
        stride: (t, y, x) size of a cell in tokens, from the video's origin on; the last one of an
            axis may be smaller.
        budget: takes the cells whose number is nearest below it; of equally many those that leave
            time alone, and then those that are most square.
    """

    start_layer: int = 0
    kind: Kind = "sampling"
    stride: tuple[int, int, int] | None = None
    budget: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("kind", self.kind, get_args(Kind))
        check_exactly_one(stride=self.stride, budget=self.budget)
        if self.budget is not None:
            check_number("budget", self.budget, 0.0, 1.0, low_open=True)
        if self.stride is not None:
            if not isinstance(self.stride, (tuple, list)) or len(self.stride) != 3:
                raise ValueError(f"stride={self.stride!r} must be three whole numbers (t, y, x)")
            for side in self.stride:
                check_integer("stride", side, 1)
            object.__setattr__(self, "stride", tuple(self.stride))

    @classmethod
    def published(cls, **settings: Any) -> GridConfig:
        """From ``kind``, ``stride`` (our names: there is no published code)."""
        return cls(**from_published(settings, {"kind": "kind", "stride": "stride"}))

    def count(self, grid: tuple[int, int, int]) -> int:
        stride = self.stride or stride_for(grid, max_tokens(self.budget or 1.0, math.prod(grid)))
        return math.prod(_cells(side, step) for side, step in zip(grid, stride, strict=True))

    def reduce(self, tokens: Tokens, layer: int, probe: Probe, state: State) -> Kept:
        """Keep one token a cell."""
        features, grid = tokens.as_grid().flatten(0, 2), tokens.grid
        stride = self.stride or stride_for(grid, max_tokens(self.budget or 1.0, len(tokens)))
        _, rows, columns = (_cells(side, step) for side, step in zip(grid, stride, strict=True))
        t, y, x = (torch.arange(side, device=features.device) for side in grid)
        (st, sy, sx), (_, height, width) = stride, grid
        first = ((t[::st, None, None] * height + y[::sy, None]) * width + x[::sx]).flatten()
        if self.kind == "sampling":
            return Kept.select(tokens, first)
        owner = ((t // st)[:, None, None] * rows + (y // sy)[:, None]) * columns + x // sx
        means = group_means(features, owner.flatten(), len(first)).to(features.dtype)
        return Kept(means, first, owner.flatten())


def stride_for(grid: tuple[int, int, int], most: int) -> tuple[int, int, int]:
    """The stride that leaves most of a (T, H, W) grid, at most ``most`` tokens."""

    def rank(stride: tuple[int, ...]) -> tuple[int, int, int]:
        return _count(stride), -stride[0], -abs(stride[1] - stride[2])

    def _count(stride: tuple[int, ...]) -> int:
        return math.prod(_cells(side, step) for side, step in zip(grid, stride, strict=True))

    # Of the strides that cut an axis into as many cells the smallest is enough.
    axes = [{_cells(side, step): step for step in range(side, 0, -1)}.values() for side in grid]
    t, y, x = max((stride for stride in product(*axes) if _count(stride) <= most), key=rank)
    return t, y, x


def _cells(side: int, step: int) -> int:
    return -(-side // step)
