"""Control: keep evenly spaced frames, all their tokens, and nothing of the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sttm_lmms.methods.common import BudgetConfig, keep_cells, most_within
from sttm_lmms.methods.sttm import MergedTokens


@dataclass(frozen=True, kw_only=True)
class FramesConfig(BudgetConfig):
    """Settings of frame dropping. At least one frame is kept, whatever the budget."""


def keep_frames(features: torch.Tensor, config: FramesConfig, head_dim: int | None = None) -> MergedTokens:
    """Cut ``[T, H, W, C]`` into as many even stretches as the budget allows frames; keep the middle frame of each."""
    frames, height, width, _ = features.shape
    kept = most_within(config.budget, frames)
    frame = (2 * torch.arange(kept, device=features.device) + 1) * frames // (2 * kept)
    cell = torch.arange(height * width, device=features.device)
    return keep_cells(features, (frame[:, None] * height * width + cell).flatten())
