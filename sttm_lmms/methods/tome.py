"""ToMe: bipartite soft matching (arXiv 2210.09461), over a whole video or frame by frame, as STTM's
paper compares it.

Until the target is reached, at most half of the tokens at a time::

    split the tokens by rank: even ones propose, odd ones receive
    every even token proposes itself to the odd token that it is most similar to (cosine)
    the r most similar proposals are merged: the mean, weighted by what each side stands for
    the next round's order: even tokens that stayed, most similar proposal first; then the odd ones
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F

from sttm_lmms.config import check_choice
from sttm_lmms.methods import register_method
from sttm_lmms.methods.base import BudgetWarning, Probe, RatioMethod, State, from_published, max_tokens
from sttm_lmms.methods.ops import blocks, group_means
from sttm_lmms.types import Kept, Tokens

Scope = Literal["video", "frame"]

BLOCK = 1 << 24
"""Similarities that are held at a time."""


@register_method("tome")
@dataclass(frozen=True, kw_only=True)
class ToMeConfig(RatioMethod):
    """Settings of ToMe. Survivors go on in the order of the last round, not in that of the video.

    The published code crashes per frame with more than one frame, on ``ratio=0``, and gives NaN for
    zero vectors; here all of them work.

    Attributes:
        scope: ``"video"`` matches over all tokens of the video, ``"frame"`` within each frame.
        ratio: keeps ``ceil(n * (1 - ratio))`` of the n tokens of the video or of each frame, at
            least one.
        budget: keeps exactly as many tokens as it allows, per frame as even as can be. A frame
            keeps at least one.
    """

    scope: Scope = "video"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("scope", self.scope, get_args(Scope))

    @classmethod
    def published(cls, **settings: Any) -> ToMeConfig:
        """From ``sa_prune_ratio``, ``sa_start_layer_idx``, ``sa_tome_ver`` (``"snippet"`` never
        worked)."""
        names = {"sa_prune_ratio": "ratio", "sa_start_layer_idx": "start_layer", "sa_tome_ver": "scope"}
        short = {"prune_ratio": "ratio", "ratio": "ratio", "start_layer": "start_layer", "ver": "scope"}
        return cls(**from_published(settings, names | short), decode_positions="reference")

    def reduce(self, tokens: Tokens, layer: int, probe: Probe, state: State) -> Kept:
        """Merge to the target count."""
        if self.scope == "video":
            return merge_sequences(tokens, 1, self._target(len(tokens)))
        frames = len(tokens.as_grid())
        targets = self._frame_targets(frames, len(tokens) // frames)
        return _per_frame(tokens, frames, targets)

    def _target(self, total: int) -> int:
        if self.ratio is not None:
            return max(1, ceil(total * (1 - self.ratio)))
        assert self.budget is not None
        return max_tokens(self.budget, total)

    def _frame_targets(self, frames: int, size: int) -> list[int]:
        if self.ratio is not None:
            return [self._target(size)] * frames
        total = self._target(frames * size)
        if total < frames:
            warnings.warn(
                f"budget={self.budget} is less than one token a frame, the least that scope='frame' keeps; "
                f"{frames} of {frames * size} tokens are kept",
                BudgetWarning,
                stacklevel=3,
            )
        return [max(1, (t + 1) * total // frames - t * total // frames) for t in range(frames)]


def _per_frame(tokens: Tokens, frames: int, targets: list[int]) -> Kept:
    """Merge frames with the same target together, and put the frames back in order."""
    size, device = len(tokens) // frames, tokens.features.device
    cells = torch.arange(len(tokens), device=device).view(frames, size)
    parts, place = [], []
    for target in sorted(set(targets)):
        chosen = [t for t in range(frames) if targets[t] == target]
        own = cells[torch.tensor(chosen, device=device)].flatten()
        part = Tokens(tokens.features[own], tokens.cells[own], tokens.counts[own], tokens.grid)
        parts.append((own, merge_sequences(part, len(chosen), target)))
        place += [sum(targets[:t]) + i for t in chosen for i in range(target)]
    position = torch.tensor(place, device=device)
    order = position.argsort()
    owner, done = torch.empty(len(tokens), dtype=torch.long, device=device), 0
    for own, kept in parts:
        owner[own] = position[done + kept.owner]
        done += len(kept)
    features = torch.cat([kept.features for _, kept in parts])[order]
    index = torch.cat([own[kept.index] for own, kept in parts])[order]
    return Kept(features, index, owner)


def merge_sequences(tokens: Tokens, sequences: int, target: int) -> Kept:
    """Merge each of ``sequences`` equally long stretches of the tokens to ``target`` tokens, side
    by side."""
    device = tokens.features.device
    total = len(tokens) // sequences
    first = torch.arange(sequences, device=device)[:, None]
    x = tokens.features
    size = tokens.counts.view(sequences, total)
    index = torch.arange(len(tokens), device=device).view(sequences, total)
    owner = torch.arange(total, device=device).expand(sequences, total)
    while (count := index.shape[1]) > target:
        merges = min(count - target, count // 2)
        rank = _match(x.view(sequences, count, -1).float(), merges)
        left = count - merges
        group = (rank + first * left).flatten()
        x = group_means(x, group, sequences * left, size.flatten())
        size = torch.zeros(sequences * left, dtype=size.dtype, device=device).index_add_(0, group, size.flatten())
        size = size.view(sequences, left)
        # A merged group takes the place of its odd token; even tokens that stay are groups of their
        # own.
        stays = torch.empty(sequences, left + 1, dtype=torch.long, device=device)
        even_rank = rank[:, ::2].masked_fill(rank[:, ::2] >= left - count // 2, left)
        stays.scatter_(1, even_rank, index[:, ::2])
        stays.scatter_(1, rank[:, 1::2], index[:, 1::2])
        index, owner = stays[:, :left], rank.gather(1, owner)
    owner = (owner + first * index.shape[1]).flatten()
    return Kept(x.to(tokens.features.dtype), index.flatten(), owner)


def _match(x: torch.Tensor, merges: int) -> torch.Tensor:
    """One round on ``[B, n, C]``: the rank ``[B, n]`` that each token, or the one it merges into,
    has afterwards."""
    (sequences, count, _), device = x.shape, x.device
    x = F.normalize(x, dim=-1)
    source, destination = x[:, ::2], x[:, 1::2].mT
    step = max(1, BLOCK // (sequences * destination.shape[-1]))
    best = [(source[:, block] @ destination).max(-1) for block in blocks(source.shape[1], step)]
    score, partner = (torch.cat(part, 1) for part in zip(*best, strict=True))
    order = score.argsort(dim=1, descending=True, stable=True)
    merged, unmerged = order[:, :merges], order[:, merges:]
    stay = unmerged.shape[1]
    rank = torch.empty(sequences, count, dtype=torch.long, device=device)
    rank[:, 1::2] = torch.arange(stay, stay + count // 2, device=device)
    even = torch.empty_like(order)
    even.scatter_(1, unmerged, torch.arange(stay, device=device).expand_as(unmerged))
    even.scatter_(1, merged, stay + partner.gather(1, merged))
    rank[:, ::2] = even
    return rank
