"""Control: keep a random subset of the tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sttm_lmms.config import check_integer
from sttm_lmms.methods.common import BudgetConfig, keep_cells, most_within
from sttm_lmms.methods.sttm import MergedTokens


@dataclass(frozen=True, kw_only=True)
class RandomConfig(BudgetConfig):
    """Settings of random dropping.

    Attributes:
        seed: of the draw. A video keeps the same tokens every time, on every device.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("seed", self.seed, 0)


def keep_random(features: torch.Tensor, config: RandomConfig, head_dim: int | None = None) -> MergedTokens:
    """Keep as many tokens of ``[T, H, W, C]`` as the budget allows, drawn without replacement; drop the others."""
    total = features.shape[:3].numel()
    draw = torch.randperm(total, generator=torch.Generator().manual_seed(config.seed))
    kept, _ = draw[: most_within(config.budget, total)].sort()
    return keep_cells(features, kept.to(features.device))
