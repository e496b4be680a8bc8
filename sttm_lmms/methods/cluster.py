"""SimpleCluster (arXiv 2609.35394): spherical k-means over all tokens of a video, their places
rotated into them.

::

    rotate each token's channels by its frame, row and column, as rotary embeddings do;
        scale it to unit length
    prototypes: one token, then again and again the token least like its most similar prototype
    a few times: each token joins the most similar prototype,
        which becomes the direction of their mean
    a group's mean (of the tokens as they were) stands at the place of its first token
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from sttm_lmms.config import check_integer, check_number
from sttm_lmms.methods import register_method
from sttm_lmms.methods.base import LayerMethod, Probe, State, check_exactly_one, from_published, max_tokens
from sttm_lmms.methods.ops import blocks, group_means, row_norms
from sttm_lmms.types import Kept, Tokens

BLOCK = 1 << 24
"""Similarities, and numbers of rows, that are held at a time."""

POOL = 512
"""Rows among which prototypes are looked for one after the other."""

EPS = 1e-6


@register_method("cluster")
@dataclass(frozen=True, kw_only=True)
class ClusterConfig(LayerMethod):
    """Settings of SimpleCluster. Give ``retention_ratio`` or ``budget``.

    The published code refuses frames that are not square, and fails where a prototype ends without
    tokens (zero vectors); here both work.

    Attributes:
        retention_ratio: the published argument: ``round(N * retention_ratio)`` of N tokens, at
            least 1.
        budget: keeps exactly as many tokens as it allows.
        max_iters: rounds of k-means at most.
        first_prototype: the token from which the prototypes start. None takes the one of largest
            norm; the published code takes the one whose norm is largest after scaling to unit
            length, which is the last bit's accident.
    """

    start_layer: int = 0
    retention_ratio: float | None = None
    budget: float | None = None
    max_iters: int = 10
    first_prototype: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_exactly_one(retention_ratio=self.retention_ratio, budget=self.budget)
        name = "budget" if self.retention_ratio is None else "retention_ratio"
        check_number(name, getattr(self, name), 0.0, 1.0, low_open=True)
        check_integer("max_iters", self.max_iters, 0)
        if self.first_prototype is not None:
            check_integer("first_prototype", self.first_prototype, 0)

    @classmethod
    def published(cls, **settings: Any) -> ClusterConfig:
        """From ``retention_ratio``, ``max_iters``, ``first_prototype``."""
        names = ("retention_ratio", "max_iters", "first_prototype")
        return cls(**from_published(settings, {name: name for name in names}))

    def count(self, grid: tuple[int, int, int]) -> int:
        total = math.prod(grid)
        if self.budget is not None:
            return max_tokens(self.budget, total)
        return max(1, min(total, round(total * (self.retention_ratio or 0))))

    def reduce(self, tokens: Tokens, layer: int, probe: Probe, state: State) -> Kept:
        """Cluster, and average each cluster."""
        features, count = tokens.as_grid().flatten(0, 2), self.count(tokens.grid)
        if self.first_prototype is not None and self.first_prototype >= len(tokens):
            raise ValueError(
                f"first_prototype={self.first_prototype} must be below the {len(tokens)} tokens of the video"
            )
        unit = rotate(features, self._places(tokens)).float()
        unit /= unit.norm(dim=-1, keepdim=True).clamp(min=EPS)
        first = row_norms(features).argmax() if self.first_prototype is None else torch.tensor(self.first_prototype)
        prototypes, assigned = spread_prototypes(unit, first.to(unit.device), count)
        group = spherical_kmeans(unit, prototypes, assigned, self.max_iters)

        # Groups in the order of their first tokens.
        place = torch.arange(len(tokens), device=group.device)
        leader = torch.full((count,), len(tokens), device=group.device).scatter_reduce(0, group, place, "amin")
        index, order = leader.sort()
        owner = torch.empty_like(order).scatter_(0, order, torch.arange(count, device=order.device))[group]
        return Kept(group_means(features, owner, count).to(features.dtype), index, owner)

    def _places(self, tokens: Tokens) -> torch.Tensor:
        """``[N, 3]`` frame, row and column by which tokens are rotated."""
        _, height, width = tokens.grid
        side = math.isqrt(height * width)
        if self.budget is not None or side * side != height * width:
            return tokens.cells
        # The published code knows the number of a frame's tokens only, and takes 1 x 4 for 2 x 2.
        place = torch.arange(len(tokens), device=tokens.cells.device)
        return torch.stack((place // side**2, place // side % side, place % side), 1)


def rotate(features: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    """``[N, C]`` in its dtype, with neighbouring channels rotated by the places ``[N, 3]``: a third
    of the channels by the frame, one by the row, one by the column."""
    third = features.shape[1] // 3
    rotated = features.clone()
    start = 0
    for axis, size in enumerate((third + features.shape[1] % 3, third, third)):
        pairs = size // 2
        if pairs:
            frequency = 10_000.0 ** (-torch.arange(pairs, device=features.device) / pairs)
            angle = cells[:, axis, None].float() * frequency
            cos, sin = angle.cos().to(features.dtype), angle.sin().to(features.dtype)
            a, b = features[:, start : start + 2 * pairs].unflatten(1, (-1, 2)).unbind(-1)
            rotated[:, start : start + 2 * pairs] = torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(1)
        start += size
    return rotated


class Assigned(NamedTuple):
    """For each row the prototype with the largest dot product, the first among equals, and that
    product."""

    similarity: torch.Tensor
    group: torch.Tensor


def spread_prototypes(unit: torch.Tensor, first: torch.Tensor, count: int) -> tuple[torch.Tensor, Assigned]:
    """``[count, C]``: row ``first`` of ``[N, C]``, then again and again the one that is least like
    its nearest prototype; and what that makes of the rows."""
    chosen = first.view(1)
    similarity = unit @ unit.index_select(0, chosen)[0]
    group = torch.zeros_like(similarity, dtype=torch.long)
    while len(chosen) < count:
        # One product with many prototypes costs far less than one with each. Rows outside the pool are no less alike
        # than `bar` and get only more so: as long as one inside is less alike than that, it is the next prototype.
        order = similarity.argsort(stable=True)[: POOL + 1]
        pool = order[:POOL].sort().values
        bar = similarity[order[-1]] if len(order) > POOL else similarity.new_tensor(torch.inf)
        picks, likeness = _spread(unit.index_select(0, pool), similarity[pool], min(len(pool), count - len(chosen)))
        new = pool[picks[: max(1, int((likeness < bar).sum()))]]
        best, whose = _nearest(unit, torch.arange(len(unit), device=unit.device), unit.index_select(0, new))
        group = torch.where(best > similarity, whose + len(chosen), group)
        similarity = torch.maximum(similarity, best)
        chosen = torch.cat((chosen, new))
    return unit.index_select(0, chosen), Assigned(similarity, group)


def _spread(rows: torch.Tensor, near: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``[count]`` of the rows ``[P, C]`` one after the other, each the least of ``near``, its
    similarity to the prototypes before it; and that value, which never falls."""
    table = rows @ rows.T
    picks, values = [], []
    for _ in range(count):
        value, pick = near.min(0)
        picks.append(pick)
        values.append(value)
        near = torch.maximum(near, table.index_select(0, pick.view(1))[0])
    return torch.stack(picks), torch.stack(values)


def spherical_kmeans(unit: torch.Tensor, prototypes: torch.Tensor, assigned: Assigned, rounds: int) -> torch.Tensor:
    """``[N]`` int64: the prototype of each row of ``[N, C]`` after at most so many rounds; none is
    without rows."""
    similarity, group = assigned
    for _ in range(rounds):
        sums = torch.zeros_like(prototypes).index_add_(0, group, unit)
        size = _sizes(group, len(prototypes))
        mean = sums / size.clamp(min=1)[:, None]
        mean /= mean.norm(dim=-1, keepdim=True).clamp(min=EPS)
        # A prototype without rows becomes the row that is least like its own prototype; the next
        # one the next.
        empty = size == 0
        spare = similarity.argsort(stable=True)[(empty.cumsum(0) - 1).clamp(min=0)]
        mean = torch.where(empty[:, None], unit[spare], mean)
        step = (mean - prototypes).abs().amax(1)
        prototypes = mean
        similarity, group = _reassign(unit, prototypes, step > 0, Assigned(similarity, group))
        if bool(step.amax() <= EPS):
            break
    for lonely in (_sizes(group, len(prototypes)) == 0).nonzero().flatten().tolist():
        movable = _sizes(group, len(prototypes))[group] > 1
        group[similarity.masked_fill(~movable, torch.inf).argmin()] = lonely
    return group


def _reassign(unit: torch.Tensor, prototypes: torch.Tensor, moved: torch.Tensor, before: Assigned) -> Assigned:
    """The rows' nearest prototypes after some of these have ``moved``: what is similar to the others
    is known."""
    similarity, group = (part.clone() for part in before)
    adrift = moved[group]
    rows = adrift.nonzero().flatten()
    similarity[rows], group[rows] = _nearest(unit, rows, prototypes)
    rows, candidates = (~adrift).nonzero().flatten(), moved.nonzero().flatten()
    if len(rows) and len(candidates):
        best, whose = _nearest(unit, rows, prototypes[candidates])
        whose, known, old = candidates[whose], similarity[rows], group[rows]
        better = (best > known) | ((best == known) & (whose < old))
        similarity[rows], group[rows] = torch.where(better, best, known), torch.where(better, whose, old)
    return Assigned(similarity, group)


def _nearest(unit: torch.Tensor, rows: torch.Tensor, prototypes: torch.Tensor) -> Assigned:
    """The assignment of the rows ``rows`` of ``[N, C]``, block by block."""
    similarity = torch.empty(len(rows), dtype=unit.dtype, device=unit.device)
    group = torch.empty_like(rows)
    for block in blocks(len(rows), max(1, BLOCK // max(len(prototypes), unit.shape[1]))):
        similarity[block], group[block] = (unit.index_select(0, rows[block]) @ prototypes.T).max(1)
    return Assigned(similarity, group)


def _sizes(group: torch.Tensor, groups: int) -> torch.Tensor:
    return torch.zeros(groups, dtype=torch.long, device=group.device).index_add_(0, group, torch.ones_like(group))
