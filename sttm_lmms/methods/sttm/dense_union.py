"""Thresholds to tokens for many pairs of thresholds at once, without a host read (arXiv 2507.07990, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sttm_lmms.methods.sttm.dense_similarity import Measured
from sttm_lmms.methods.sttm.dense_tables import Tables

SPARE_ROUNDS = 3
"""Rounds of the union beyond log2(T); random videos needed up to that many."""


@dataclass(frozen=True)
class Tokens:
    """The tokens of a video at B pairs of thresholds. An anchor is a flat index into ``[T, B, H*W]``.

    Attributes:
        level: ``[T, B, H*W]`` int64, pyramid level of the token that owns the cell after the spatial step.
        anchor: ``[T, B, H*W]`` int64, its top-left cell.
        owner: ``[T, B, H*W]`` int64, anchor of the token that stands for the cell after the temporal step.
        cell: ``[T, B, H*W]`` int64, 0, 1, 2, ...
        rounds: ``[B]`` int64, rounds of the union until it was stable; ``limit`` if it never was.
        limit: rounds that were made.
        link: ``[T - 1, B, H*W]`` float32, similarity of the tokens over a cell in one frame and in the next; None where
            the temporal step is off.
    """

    level: torch.Tensor
    anchor: torch.Tensor
    owner: torch.Tensor
    cell: torch.Tensor
    rounds: torch.Tensor
    limit: int
    link: torch.Tensor | None = None

    @property
    def survives(self) -> torch.Tensor:
        """``[T, B, H*W]`` bool, true on the anchors of the tokens that stay."""
        return self.owner == self.cell

    @property
    def starts(self) -> torch.Tensor:
        """``[T, B, H*W]`` bool, true on the anchors of the tokens of the spatial step."""
        return self.anchor == self.cell


def rounds_for(frames: int) -> int:
    """Rounds of the union that are enough for nearly every video."""
    return max(1, frames - 1).bit_length() + SPARE_ROUNDS


def tokens_at(
    measured: Measured,
    tables: Tables,
    spatial: float | torch.Tensor,
    temporal: float | torch.Tensor,
    *,
    points: int = 1,
    limit: int | None = None,
    settled: bool = False,
) -> Tokens:
    """The tokens at ``points`` pairs of thresholds.

    Args:
        measured: the video's similarities; without temporal ones the temporal step is off.
        tables: of its grid.
        spatial, temporal: numbers, or ``[B, 1, 1]`` and ``[B, 1]`` float32.
        points: B.
        limit: rounds of the union, if not :func:`rounds_for`.
        settled: ``limit`` is known to be the first stable round, none is looked for.
    """
    frames, cells = len(measured.agreement), tables.cells
    flat = torch.arange(frames * points * cells, device=tables.anchor.device)
    cell = flat.view(frames, points, cells)
    level = (measured.barrier < spatial).sum(2)
    anchor = cell - tables.back[level, tables.column]
    if measured.similarity is None:
        return Tokens(level, anchor, anchor, cell, flat.new_zeros(points), 1)

    pair = tables.pair[torch.add(level[1:], level[:-1], alpha=tables.levels)]
    link = measured.similarity.gather(1, pair)
    earlier = anchor[:-1]
    # A pair that does not count becomes a pair of a token with itself, which changes nothing.
    later = torch.where(link >= temporal, anchor[1:], earlier)
    limit = limit or rounds_for(frames)
    representatives = _rounds(flat, earlier, later, limit)
    if settled:
        return Tokens(level, anchor, representatives[-1][anchor], cell, flat.new_zeros(points), limit, link)
    owner, rounds = _first_stable(representatives, flat, anchor)
    return Tokens(level, anchor, owner, cell, rounds, limit, link)


def _rounds(cell: torch.Tensor, earlier: torch.Tensor, later: torch.Tensor, limit: int) -> list[torch.Tensor]:
    """The representatives after each round; see :func:`sttm_lmms.methods.sttm.temporal.representatives`.

    The minimum over a pair is the minimum of a token's own value, which scattering includes, and its partner's.
    """
    pairs = earlier.numel()
    ends = torch.cat((earlier, later, earlier)).flatten()
    token, partner = ends[: 2 * pairs], ends[pairs:]
    lowered = cell.scatter_reduce(0, token, partner, "amin")
    found = [lowered[lowered]]
    for _ in range(limit - 1):
        lowered = found[-1].scatter_reduce(0, token, found[-1][partner], "amin")
        found.append(lowered[lowered])
    return found


def _first_stable(
    representatives: list[torch.Tensor], cell: torch.Tensor, anchor: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each pair of thresholds the first of R representatives ``[T*B*H*W]`` that is its own representative.

    More rounds are not harmless: they would go on merging.

    Returns:
        Representatives ``[T, B, H*W]`` of the anchors, and ``[B]`` the number of unstable rounds before; R (and
        every token itself) if none is stable.
    """
    # The cells themselves are stable, so that there always is a first one.
    table = torch.stack((*representatives, cell))
    changes = table.gather(1, table) != table
    unstable = changes.view(-1, *anchor.shape).any((1, 3)).cumprod(0).sum(0)
    return table.take(torch.add(anchor, unstable[:, None], alpha=len(cell))), unstable
