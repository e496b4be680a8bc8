"""Control: keep evenly spaced frames, all their tokens, and nothing of the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sttm_lmms.methods import register_method
from sttm_lmms.methods.base import BudgetMethod, Probe, Scratch, max_tokens
from sttm_lmms.types import Kept, Tokens


@register_method("frames")
@dataclass(frozen=True, kw_only=True)
class FramesConfig(BudgetMethod):
    """Settings of frame dropping. At least one frame is kept, whatever the budget."""

    def reduce(self, tokens: Tokens, layer: int, probe: Probe, scratch: Scratch) -> Kept:
        """Cut the video into as many even stretches as the budget allows frames; keep the middle frame of each."""
        frames, height, width = tokens.grid
        device = tokens.features.device
        kept = max_tokens(self.budget, frames)
        frame = (2 * torch.arange(kept, device=device) + 1) * frames // (2 * kept)
        cell = torch.arange(height * width, device=device)
        return Kept.select(tokens, (frame[:, None] * height * width + cell).flatten())
