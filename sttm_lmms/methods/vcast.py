"""V-CAST (arXiv 2603.27650): frames at turns of the video keep more tokens, and every frame its
most unusual ones.

::

    a frame's curvature = 1 - cosine of the steps of the frames' unit means before and after it;
        1 at both ends
    every frame keeps min_k tokens; the others are shared out by the softmax of the curvatures
    in a frame: keep the tokens that are least like the frame's mean and largest
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from sttm_lmms.config import check_integer, check_number
from sttm_lmms.methods import register_method
from sttm_lmms.methods.base import LayerMethod, Probe, State, check_exactly_one, from_published, max_tokens
from sttm_lmms.types import Kept, Tokens

TEMPERATURE = 0.7
EPS = 1e-6


@register_method("vcast")
@dataclass(frozen=True, kw_only=True)
class VCASTConfig(LayerMethod):
    """Settings of V-CAST. Give ``retain_ratio`` or ``budget``.

    Attributes:
        retain_ratio: the published argument: ``round(N * retain_ratio)`` of N tokens stay, at least
            ``min_k`` a frame; a single frame stays whole.
        budget: keeps exactly as many tokens as it allows, fewer than ``min_k`` a frame if it has
            to.
        min_k: tokens that every frame keeps.
    """

    start_layer: int = 0
    retain_ratio: float | None = None
    budget: float | None = None
    min_k: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_exactly_one(retain_ratio=self.retain_ratio, budget=self.budget)
        name = "budget" if self.retain_ratio is None else "retain_ratio"
        check_number(name, getattr(self, name), 0.0, 1.0, low_open=True)
        check_integer("min_k", self.min_k, 0)

    @classmethod
    def published(cls, **settings: Any) -> VCASTConfig:
        """From ``retain_ratio`` (at or below 0 it means 0.25), ``min_k``."""
        ours = from_published(settings, {"retain_ratio": "retain_ratio", "min_k": "min_k"})
        if ours.get("retain_ratio", 0.25) <= 0:
            ours["retain_ratio"] = 0.25
        return cls(**{"retain_ratio": 0.25} | ours)

    def count(self, grid: tuple[int, int, int]) -> int:
        frames, total = grid[0], math.prod(grid)
        if self.budget is not None:
            return max_tokens(self.budget, total)
        if frames == 1:
            return total
        assert self.retain_ratio is not None
        least = frames * min(self.min_k, total // frames)
        return max(1, min(total, round(total * self.retain_ratio)), least)

    def reduce(self, tokens: Tokens, layer: int, probe: Probe, state: State) -> Kept:
        """Keep each frame's most unusual tokens."""
        features = tokens.as_grid().flatten(1, 2).float()
        frames, size, _ = features.shape
        count = self.count(tokens.grid)
        mean = features.mean(1)
        mean = mean / mean.norm(dim=-1, keepdim=True).clamp(min=EPS)
        frame_counts = distribute(curvature(mean), count, size, min(self.min_k, size, count // frames))

        norm = features.norm(dim=-1)
        low, high = norm.amin(1, keepdim=True), norm.amax(1, keepdim=True)
        unlike = 1 - F.cosine_similarity(features, mean[:, None], dim=-1, eps=EPS)
        score = unlike + (norm - low) / (high - low + EPS)
        # One host read. topk frame by frame, because it decides which of equal tokens of a flat
        # picture stay.
        best = [score[t].topk(k).indices + t * size for t, k in enumerate(frame_counts.tolist())]
        return Kept.select(tokens, torch.cat(best).sort().values)


def curvature(mean: torch.Tensor) -> torch.Tensor:
    """``[T]``: how sharply the path through the frames' means ``[T, C]`` turns at each of them, 0
    to 2."""
    turns = torch.ones(len(mean), device=mean.device)
    if len(mean) > 2:
        step = mean[1:] - mean[:-1]
        turns[1:-1] = 1 - F.cosine_similarity(step[:-1], step[1:], dim=-1, eps=EPS)
    return turns


def distribute(turns: torch.Tensor, count: int, size: int, least: int) -> torch.Tensor:
    """``[T]`` int64: how many of its ``size`` tokens each frame keeps, ``count`` in all and at
    least ``least`` each."""
    weight = (turns / TEMPERATURE).softmax(0)
    rest = count - len(turns) * least
    wanted = weight / weight.sum().clamp(min=EPS) * rest
    extra = wanted.floor().clamp(max=size - least)
    # As published: the frame with the largest fraction gets all that is left until it is full, then
    # the next one.
    order = (wanted - wanted.floor()).argsort(descending=True, stable=True)
    room = size - least - extra[order]
    extra[order] += (rest - extra.sum() - (room.cumsum(0) - room)).clamp(min=0).minimum(room)
    return extra.long() + least
