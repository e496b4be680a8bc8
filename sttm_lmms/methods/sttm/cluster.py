"""Thresholds to tokens: the leaves of the quadtrees (section 3.2), joined along time (section 3.3).

Tokens are labels of the cells. A token is known by its *anchor*, the flat index of its top-left
cell.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from sttm_lmms.methods.sttm.grid import Grid
from sttm_lmms.methods.sttm.pyramid import leaf_level
from sttm_lmms.methods.sttm.similarity import Similarities, Thresholds, TokenCount

FEWEST_ROUNDS = 6
"""Rounds of the union that every video gets on accelerators; made-up ones of up to 32 frames needed
at most 5."""

COUNTING_BYTES = 1 << 25
"""Counting at many pairs of thresholds at once may take as many bytes as the features, but always
as many as this."""


@dataclass(frozen=True)
class Labels:
    """The tokens of a video: which of them each of its N cells belongs to.

    Attributes:
        level: ``[N]`` int64, level of the token over each cell after the spatial step.
        anchor: ``[N]`` int64, its anchor.
        owner: ``[N]`` int64, anchor of the token that stands for the cell after the temporal step.
        kept: number of tokens.
        after_spatial: number of tokens after the spatial step.
        frame_similarity: ``[N - H*W]`` float32, similarity of the spatial step's tokens over a cell
            in one frame and in the next; None where the temporal step is off.
    """

    level: torch.Tensor
    anchor: torch.Tensor
    owner: torch.Tensor
    kept: int
    after_spatial: int
    frame_similarity: torch.Tensor | None = None

    @property
    def cells(self) -> int:
        """N: all visual tokens."""
        return self.owner.numel()


def cluster(similarities: Similarities, grid: Grid, thresholds: Thresholds) -> Labels:
    """The tokens at a pair of thresholds.

    On accelerators one host read, but for a union that takes unusually many rounds; none where a
    search has counted the tokens at these thresholds already.
    """
    level, anchor, cell = _leaves(similarities, grid, thresholds.spatial)
    count = similarities.counts.get(thresholds)
    rounds = count.rounds if count else _usual_rounds(similarities)
    while True:
        union, link = _join_in_time(similarities, grid, level, anchor, cell, _cut(thresholds.temporal), rounds)
        count = count or _read_counts(_count(union, level, cell), len(cell))[0]
        if count is not None:
            owner = union[count.rounds].index_select(0, anchor)
            link = None if link is None else link.flatten()
            return Labels(level.flatten(), anchor, owner, count.kept, count.after_spatial, link)
        rounds *= 2


def count_tokens(similarities: Similarities, grid: Grid, points: Iterable[Thresholds]) -> None:
    """Count the tokens at pairs of thresholds into ``similarities.counts``, as many at a time as
    memory allows."""
    device, cells = similarities.min_child_similarity.device, len(similarities.min_child_similarity) * grid.cells
    todo = [point for point in dict.fromkeys(points) if point not in similarities.counts]
    # One round more than for a single pair: each of many could be the one that needs it.
    rounds = _usual_rounds(similarities) + 1
    while todo:
        # The tables of a union are int64: two a round, and about twelve others.
        allowed = max(COUNTING_BYTES, similarities.feature_bytes) if grid.dense else 0
        step = max(1, allowed // (8 * (2 * rounds + 12) * cells))
        found = []
        for start in range(0, len(todo), step):
            part = [(spatial, _cut(temporal)) for spatial, temporal in todo[start : start + step]]
            spatial, temporal = torch.tensor(part).to(device, non_blocking=True).split(1, dim=1)
            level, anchor, cell = _leaves(similarities, grid, spatial)
            union, _ = _join_in_time(similarities, grid, level, anchor, cell, temporal, rounds)
            found.append(_count(union, level, cell))
        counts = _read_counts(found[0] if len(found) == 1 else torch.cat(found, -1), cells)
        similarities.counts.update((point, count) for point, count in zip(todo, counts, strict=True) if count)
        todo = [point for point in todo if point not in similarities.counts]
        rounds *= 2


def _leaves(
    similarities: Similarities, grid: Grid, spatial: float | torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The tokens of the spatial step at a threshold, or at each of B: levels ``[T, B, H*W]``, and
    flat over these the anchors and the cells 0, 1, 2, ..."""
    level = leaf_level(similarities.running_max_similarity, spatial)
    cell = torch.arange(level.numel(), device=level.device)
    return level, cell - grid.offset[level, grid.cell].view(-1), cell


def _join_in_time(
    similarities: Similarities,
    grid: Grid,
    level: torch.Tensor,
    anchor: torch.Tensor,
    cell: torch.Tensor,
    temporal: float | torch.Tensor,
    rounds: int,
) -> tuple[list[torch.Tensor], torch.Tensor | None]:
    """The union of similar tokens that overlap in consecutive frames.

    Quadtree boxes are nested or disjoint, so the tokens over one cell in two frames are all the
    pairs there are.

    Returns:
        The anchors of the spatial step, and after each of the rounds the anchor of the token that
        stands for each anchor; and the similarities ``[T - 1, B, H*W]`` of the pairs. (One round
        that stands for all on CPUs; none, and no similarities, where the temporal step is off.)
    """
    if similarities.frame_similarity is None:
        return [anchor], None
    pair = grid.pair[level[:-1], level[1:], grid.cell]
    link = similarities.frame_similarity.gather(1, pair.flatten(1)).view_as(pair)
    frame = level[0].numel()
    earlier = anchor[:-frame]
    # A pair that is not similar enough becomes a pair of a token with itself, which changes
    # nothing.
    later = torch.where((link >= temporal).view(-1), anchor[frame:], earlier)
    return [anchor, *_union(earlier, later, cell, None if not grid.dense else rounds)], link


def _union(earlier: torch.Tensor, later: torch.Tensor, cell: torch.Tensor, rounds: int | None) -> list[torch.Tensor]:
    """The representatives after each round; without a number of rounds the first stable ones alone.

    Not connected components, on purpose: the published code stops as soon as the representatives
    are stable under path compression, so a token joins the earliest of its partners while the other
    partners stay.
    """
    # The minimum over a pair is that of a token's own value, which scattering includes, and its
    # partner's.
    token, partner = torch.cat((earlier, later)), torch.cat((later, earlier))
    found, value = [cell], partner
    while rounds is None or len(found) <= rounds:
        lowered = found[-1].scatter_reduce(0, token, value, "amin")
        found.append(lowered.index_select(0, lowered))
        if rounds is None and torch.equal(found[-1], found[-1].index_select(0, found[-1])):
            return found[-1:]
        if len(found) - 1 != rounds:
            value = found[-1].index_select(0, partner)
    return found[1:]


def _count(union: list[torch.Tensor], level: torch.Tensor, cell: torch.Tensor) -> torch.Tensor:
    """``[2, R + 1, B]`` int64 after each of R rounds: cells that stand for themselves, and cells
    for which such a one stands (all, once the union is stable)."""
    table = torch.stack(union)
    alone = table == cell
    return torch.stack((alone, alone.gather(1, table))).view(2, -1, *level.shape).sum((2, 4))


def _read_counts(counts: torch.Tensor, cells: int) -> list[TokenCount | None]:
    """For each pair of thresholds the tokens after the first stable round; None if there was none.

    The first one, for more rounds are not harmless: they would go on merging.
    """
    alone, represented = (list(zip(*rounds, strict=True)) for rounds in to_host(counts))
    return [_first_stable(*rounds, cells) for rounds in zip(alone, represented, strict=True)]


def _first_stable(alone: Sequence[int], represented: Sequence[int], cells: int) -> TokenCount | None:
    after_spatial = alone[0]
    if len(alone) == 1:
        return TokenCount(after_spatial, after_spatial, 0)
    # In the union cells that are no anchor stand for themselves.
    stable = (rounds for rounds in range(1, len(alone)) if represented[rounds] == cells)
    return next((TokenCount(alone[r] - (cells - after_spatial), after_spatial, r) for r in stable), None)


def to_host(values: torch.Tensor) -> list:
    """The only place where merging waits for an accelerator."""
    return values.tolist()


def _usual_rounds(similarities: Similarities) -> int:
    """Rounds of the union that are enough for a chain through all frames, and for nearly every
    video."""
    return max(FEWEST_ROUNDS, (len(similarities.min_child_similarity) - 1).bit_length())


def _cut(temporal: float) -> float:
    """The temporal step is turned off by a threshold that no pair reaches, instead of by 0."""
    return temporal if temporal > 0 else math.inf
