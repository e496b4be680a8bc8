"""EVS, efficient video sampling (arXiv 2510.14624): keep the tokens that differ most from the frame
before.

Written from the paper's idea; vLLM has its own behind ``--video-pruning-rate``::

    a token's change = 1 - cosine similarity to the same place in the frame before;
        frame 0 counts as all new
    keep the K tokens of largest change, frame 0 always whole
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch

from sttm_lmms.methods import register_method
from sttm_lmms.methods.base import BudgetWarning, Probe, RatioMethod, State, from_published, max_tokens
from sttm_lmms.methods.ops import cosine
from sttm_lmms.types import Kept, Tokens


@register_method("evs")
@dataclass(frozen=True, kw_only=True)
class EVSConfig(RatioMethod):
    """Settings of EVS. Every frame is compared with the one before it, whether that was kept or
    not.

    Frame 0 is the floor: a budget below 1 / T warns and keeps it.

    Attributes:
        ratio: the published argument, share to remove; keeps ``int(N * (1 - ratio))`` of N tokens.
        budget: keeps exactly as many tokens as it allows.
    """

    start_layer: int = 0

    @classmethod
    def published(cls, **settings: Any) -> EVSConfig:
        """From ``video_pruning_rate``."""
        return cls(**from_published(settings, {"video_pruning_rate": "ratio"}))

    def count(self, grid: tuple[int, int, int]) -> int:
        total = math.prod(grid)
        kept = max_tokens(self.budget, total) if self.budget is not None else int(total * (1 - (self.ratio or 0)))
        return max(grid[1] * grid[2], kept)

    def reduce(self, tokens: Tokens, layer: int, probe: Probe, state: State) -> Kept:
        """Drop the tokens that changed least."""
        features, (frames, height, width) = tokens.as_grid().flatten(0, 2), tokens.grid
        frame, total = height * width, len(tokens)
        count = self.count(tokens.grid)
        if self.budget is not None and count > max_tokens(self.budget, total):
            warnings.warn(
                f"budget={self.budget} is below what EVS keeps of {frames} frames: the first one whole "
                f"({frame} of {total} tokens)",
                BudgetWarning,
                stacklevel=2,
            )
        place = torch.arange(total, device=features.device)
        change = torch.full((total,), torch.inf, device=features.device)
        change[frame:] = 1 - cosine(features, place[frame:], place[:-frame])
        return Kept.select(tokens, change.sort(descending=True, stable=True).indices[:count].sort().values)
