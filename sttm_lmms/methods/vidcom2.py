"""VidCom2 (arXiv 2505.14454): distinctive frames keep more tokens, and every frame its most
distinctive ones.

A token is described by the half of its channels that vary least over the video, at unit length. Its similarity to a
mean is a sum of Gaussians of their distance::

    v, f = similarity of each token to the mean of the video and to the mean of its frame
    a frame's share grows with how little its tokens resemble the video (mean of v),
        by a sharp softmax
    each frame keeps its share of tokens, those with the smallest v + f
    until the count is met: drop the kept tokens of largest v + f, or take dropped ones of smallest
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from sttm_lmms.config import check_number
from sttm_lmms.methods import register_method
from sttm_lmms.methods.base import LayerMethod, Probe, State, check_exactly_one, from_published, max_tokens
from sttm_lmms.types import Kept, Tokens

TEMPERATURE = 0.01
WIDTHS = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)
"""Of the Gaussians: variances."""


@register_method("vidcom2")
@dataclass(frozen=True, kw_only=True)
class VidCom2Config(LayerMethod):
    """Settings of VidCom2. Give one of ``ratio``, ``base_scale`` and ``budget``.

    Attributes:
        ratio: share to remove, as vLLM's ``video_pruning_rate``, with its count; in [0, 1).
        base_scale: share to keep, as in the authors' code, whose count drifts by rounding and falls
            short above 0.5.
        budget: keeps exactly as many tokens as it allows.
    """

    start_layer: int = 0
    ratio: float | None = None
    base_scale: float | None = None
    budget: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_exactly_one(ratio=self.ratio, base_scale=self.base_scale, budget=self.budget)
        if self.ratio is not None:
            check_number("ratio", self.ratio, 0.0, 1.0)
        for name in ("base_scale", "budget"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), 0.0, 1.0, low_open=True)

    @classmethod
    def published(cls, **settings: Any) -> VidCom2Config:
        """From ``video_pruning_rate`` (vLLM) or ``base_scale`` (the authors' ``R_RATIO``)."""
        return cls(**from_published(settings, {"video_pruning_rate": "ratio", "base_scale": "base_scale"}))

    def count(self, grid: tuple[int, int, int]) -> int | None:
        total = math.prod(grid)
        if self.budget is not None:
            return max_tokens(self.budget, total)
        if self.ratio is not None:
            return max(grid[0], min(int(total * (1.0 - self.ratio)), total))
        return None

    def reduce(self, tokens: Tokens, layer: int, probe: Probe, state: State) -> Kept:
        """Keep each frame's most distinctive tokens."""
        features = tokens.as_grid().flatten(1, 2)
        if self.base_scale is None:
            # In half precision scores are full of ties; the authors' code computes in the input's
            # dtype all the same.
            features = features.float()
        to_video, to_frame = similarities_to_means(features)
        score = to_video + to_frame
        scale = self.base_scale or self.budget or 1.0 - (self.ratio or 0.0)
        frame_counts = counts_of_frames(to_video, scale)
        kept = score.argsort(dim=1, stable=True).argsort(dim=1) < frame_counts[:, None]
        count = self.count(tokens.grid)
        if count is None:
            return Kept.select(tokens, kept.flatten().nonzero().squeeze(1))
        # Kept tokens first, then the others, each by score: the count cuts off or adds where it has
        # to.
        by_score = score.flatten().argsort(stable=True)
        dropped = (~kept).flatten()[by_score].long().argsort(stable=True)
        return Kept.select(tokens, by_score[dropped[:count]].sort().values)


def similarities_to_means(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``[T, n]`` each, in the dtype of the tokens ``[T, n, C]``: their similarity to the video's
    mean and to their frame's."""
    variance = features.flatten(0, 1).var(0, correction=0)
    steady = variance.argsort(stable=True)[: max(1, len(variance) // 2)]
    unit = F.normalize(features[..., steady], dim=-1, eps=1e-12)
    return _resemblance(unit, unit.mean((0, 1))), _resemblance(unit, unit.mean(1, keepdim=True))


def _resemblance(unit: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    distance = (unit - mean).square().sum(-1)
    return sum((torch.exp(-distance / (2 * width)) for width in WIDTHS), torch.zeros_like(distance))


def counts_of_frames(to_video: torch.Tensor, scale: float) -> torch.Tensor:
    """``[T]`` int64: how many of its n tokens each frame keeps, before any count is met.

    Args:
        to_video: ``[T, n]`` similarity of each token to the video's mean.
        scale: share to keep.
    """
    unlike = -to_video.mean(1)
    weight = ((unlike - unlike.max()) / TEMPERATURE).softmax(0)
    # In this order: products are often half-way between two numbers but for the last bit.
    share = (scale * (1 + weight - weight.mean())).clamp(max=1.0)
    return (share * to_video.shape[1]).round().long().clamp(1, to_video.shape[1])
