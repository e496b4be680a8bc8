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
        spatial, temporal: numbers, or ``[B, 1]`` float32.
        points: B.
        limit: rounds of the union, if not :func:`rounds_for`.
        settled: ``limit`` is known to be the first stable round, none is looked for.
    """
    frames = len(measured.agreement)
    cells = tables.cells
    cell = torch.arange(frames * points * cells, device=tables.anchor.device).view(frames, points, cells)
    level = _levels(measured.agreement, tables, spatial, cell)
    anchor = tables.anchor.gather(0, level.flatten(0, 1)).view_as(cell) + cell[..., :1]
    if measured.similarity is None:
        return Tokens(level, anchor, anchor, cell, cell.new_zeros(points), 1)

    pair = tables.pair[torch.add(level[1:], level[:-1], alpha=tables.levels)]
    link = measured.similarity.gather(1, pair)
    kept = link >= temporal
    # A pair that does not count becomes a pair of a token with itself, which changes nothing.
    earlier = anchor[:-1]
    later = torch.where(kept, anchor[1:], earlier)
    limit = limit or rounds_for(frames)
    representatives = _rounds(cell.flatten(), earlier.flatten(), later.flatten(), limit)
    if settled:
        return Tokens(level, anchor, representatives[-1][anchor], cell, cell.new_zeros(points), limit, link)
    representative, rounds = _first_stable(torch.stack(representatives), frames, points)
    return Tokens(level, anchor, representative[anchor], cell, rounds, limit, link)


def _levels(agreement: torch.Tensor, tables: Tables, spatial: float | torch.Tensor, cell: torch.Tensor) -> torch.Tensor:
    """``[T, B, H*W]``: how many nodes over a cell, from the root on, do not stop."""
    if not tables.coarse:
        return torch.zeros_like(cell)
    goes_on = agreement[:, None] < spatial
    return goes_on[:, :, tables.over].cumprod(2).sum(2)


def _rounds(cell: torch.Tensor, earlier: torch.Tensor, later: torch.Tensor, limit: int) -> list[torch.Tensor]:
    """The representatives after each round; see :func:`sttm_lmms.methods.sttm.temporal.representatives`.

    The minimum over a pair is the minimum of a token's own value, which scattering includes, and its partner's.
    """
    token, partner = torch.cat((earlier, later)), torch.cat((later, earlier))
    found = [cell]
    for _ in range(limit):
        lowered = found[-1].scatter_reduce(0, token, found[-1][partner], "amin")
        found.append(lowered[lowered])
    return found[1:]


def _first_stable(representatives: torch.Tensor, frames: int, points: int) -> tuple[torch.Tensor, torch.Tensor]:
    """For each pair of thresholds the first of ``[R, T*B*H*W]`` that is its own representative.

    More rounds are not harmless: they would go on merging.

    Returns:
        ``[T*B*H*W]``, and ``[B]`` the number of unstable rounds before it; R (and the last round) if there is none.
    """
    rounds = len(representatives)
    grid = representatives.view(rounds, frames, points, -1)
    changes = representatives.gather(1, representatives) != representatives
    unstable = changes.view_as(grid).any((1, 3)).cumprod(0).sum(0)
    chosen = unstable.clamp(max=rounds - 1)[None, None, :, None].expand(1, *grid.shape[1:])
    return grid.gather(0, chosen).flatten(), unstable
