"""Control: keep a random subset of the tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from sttm_lmms.config import check_integer
from sttm_lmms.methods import register_method
from sttm_lmms.methods.base import BudgetMethod, Probe, Scratch, max_tokens
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

    def reduce(self, tokens: Tokens, layer: int, probe: Probe, scratch: Scratch) -> Kept:
        """Keep as many tokens as the budget allows, drawn without replacement; drop the others."""
        draw = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(self.seed))
        kept, _ = draw[: max_tokens(self.budget, len(tokens))].sort()
        return Kept.select(tokens, kept.to(tokens.features.device))
