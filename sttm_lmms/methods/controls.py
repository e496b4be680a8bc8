"""Controls: what every method has to beat. Random tokens, evenly spaced frames, average pooling."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import torch

from sttm_lmms.config import check_integer
from sttm_lmms.methods import register_method
from sttm_lmms.methods.base import BudgetMethod, Probe, State, max_tokens
from sttm_lmms.types import Kept, Tokens


@register_method("random")
@dataclass(frozen=True, kw_only=True)
class RandomConfig(BudgetMethod):
    """Settings of random dropping.

    Attributes:
        seed: of the draw. A video keeps the same tokens every time, on every device.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("seed", self.seed, 0)

    def count(self, grid: tuple[int, int, int]) -> int:
        return max_tokens(self.budget, math.prod(grid))

    def reduce(self, tokens: Tokens, layer: int, probe: Probe, state: State) -> Kept:
        """Keep as many tokens as the budget allows, drawn without replacement; drop the others."""
        draw = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(self.seed))
        kept, _ = draw[: max_tokens(self.budget, len(tokens))].sort()
        return Kept.select(tokens, kept.to(tokens.features.device))


@register_method("frames")
@dataclass(frozen=True, kw_only=True)
class FramesConfig(BudgetMethod):
    """Settings of frame dropping. At least one frame is kept, whatever the budget."""

    def count(self, grid: tuple[int, int, int]) -> int:
        return max_tokens(self.budget, grid[0]) * grid[1] * grid[2]

    def reduce(self, tokens: Tokens, layer: int, probe: Probe, state: State) -> Kept:
        """Cut the video into as many even stretches as the budget allows frames; keep the middle
        frame of each."""
        frames, height, width = tokens.grid
        device = tokens.features.device
        kept = max_tokens(self.budget, frames)
        frame = (2 * torch.arange(kept, device=device) + 1) * frames // (2 * kept)
        cell = torch.arange(height * width, device=device)
        return Kept.select(tokens, (frame[:, None] * height * width + cell).flatten())


@register_method("pool")
@dataclass(frozen=True, kw_only=True)
class PoolConfig(BudgetMethod):
    """Settings of average pooling. A budget of less than one token a frame pools frames as well."""

    def count(self, grid: tuple[int, int, int]) -> int:
        return math.prod(pooled_grid(grid, self.budget))

    def reduce(self, tokens: Tokens, layer: int, probe: Probe, state: State) -> Kept:
        """Average over blocks of cells, as even as can be, as many as the budget allows."""
        after = pooled_grid(tokens.grid, self.budget)
        pooled, device = tokens.as_grid(), tokens.features.device
        block_of, first, end = [], [], []
        for axis, (old, new) in enumerate(zip(tokens.grid, after, strict=True)):
            block = torch.arange(old, device=device) * new // old
            weight = torch.nn.functional.one_hot(block, new).to(pooled.dtype)
            pooled = torch.tensordot(weight / weight.sum(0), pooled, ([0], [axis])).movedim(0, axis)
            number = torch.arange(new, device=device)
            block_of.append(block)
            first.append(torch.searchsorted(block, number))
            end.append(torch.searchsorted(block, number, right=True))

        (t, y, x), (_, height, width) = block_of, after
        owner = ((t[:, None, None] * height + y[:, None]) * width + x).flatten()
        t, y, x = torch.cartesian_prod(*(torch.arange(n, device=device) for n in after)).unbind(1)
        boxes = torch.stack((first[0][t], first[1][y], first[2][x], end[1][y], end[2][x]), 1)
        index = (boxes[:, 0] * tokens.grid[1] + boxes[:, 1]) * tokens.grid[2] + boxes[:, 2]
        return Kept(pooled.flatten(0, 2), index, owner, boxes)


def pooled_grid(grid: tuple[int, int, int], budget: float) -> tuple[int, int, int]:
    """The (T, H, W) with the most tokens within the budget whose sides shrink alike, to a factor of
    2."""
    frames, height, width = grid
    kept = max_tokens(budget, frames * height * width)
    per_frame = kept // frames
    if per_frame == 0:
        return kept, 1, 1

    def rank(size: tuple[int, int]) -> tuple[bool, int, float]:
        shrinks = sorted((size[0] / height, size[1] / width))
        return shrinks[1] <= 2 * shrinks[0], size[0] * size[1], shrinks[0]

    sizes = product(range(1, height + 1), range(1, width + 1))
    return frames, *max((size for size in sizes if size[0] * size[1] <= per_frame), key=rank)
