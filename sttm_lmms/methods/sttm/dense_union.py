"""Thresholds to tokens for many pairs of thresholds at once, without a host read (arXiv 2507.07990, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sttm_lmms.methods.sttm.dense_similarity import Measured
from sttm_lmms.methods.sttm.dense_tables import Tables

FEWEST_ROUNDS = 6
"""Rounds of the union that every video gets; made-up ones of up to 32 frames needed at most 5."""


@dataclass(frozen=True)
class Tokens:
    """The tokens of a video at B pairs of thresholds. An anchor is a flat index into ``[T, B, H*W]``; N = T*B*H*W.

    Attributes:
        level: ``[T, B, H*W]`` int64, pyramid level of the token that owns the cell after the spatial step.
        anchor: ``[N]`` int64, its top-left cell.
        cell: ``[N]`` int64, 0, 1, 2, ...
        rounds: ``[N]`` int64 after each round of the union, the anchor of the token that stands for each anchor; after
            none the spatial step's own, and no others where the temporal step is off.
        link: ``[T - 1, B, H*W]`` float32, similarity of the tokens over a cell in one frame and in the next; None where
            the temporal step is off.
    """

    level: torch.Tensor
    anchor: torch.Tensor
    cell: torch.Tensor
    rounds: list[torch.Tensor]
    link: torch.Tensor | None = None

    def counts(self) -> torch.Tensor:
        """``[2, R + 1, B]`` int64 after each of R rounds: cells that stand for themselves, and cells for which such a
        one stands (all, once the union is stable)."""
        table = torch.stack(self.rounds)
        fixed = table == self.cell
        both = torch.stack((fixed, fixed.gather(1, table)))
        return both.view(2, -1, *self.level.shape).sum((2, 4))

    def owner(self, rounds: int) -> torch.Tensor:
        """``[N]`` int64, anchor of the token that stands for each cell after so many rounds."""
        return self.rounds[rounds][self.anchor]


def rounds_for(frames: int) -> int:
    """Rounds of the union that are enough for a chain through all frames, and for nearly every video."""
    return max(FEWEST_ROUNDS, (frames - 1).bit_length())


def tokens_at(
    measured: Measured,
    tables: Tables,
    spatial: float | torch.Tensor,
    temporal: float | torch.Tensor,
    *,
    rounds: int,
    points: int = 1,
) -> Tokens:
    """The tokens at ``points`` pairs of thresholds.

    Args:
        measured: the video's similarities; without temporal ones the temporal step is off.
        tables: of its grid.
        spatial, temporal: numbers, or ``[B, 1]`` float32.
        rounds: of the union, see :func:`rounds_for`.
        points: B.
    """
    frame = points * tables.cells
    cell = torch.arange(len(measured.agreement) * frame, device=tables.anchor.device)
    level = (measured.barrier < spatial).sum(1)
    anchor = cell - tables.back[level, tables.column].view(-1)
    if measured.similarity is None:
        return Tokens(level, anchor, cell, [anchor])

    link = measured.similarity.gather(1, tables.pair_row[level[:-1], level[1:]])
    earlier = anchor[:-frame]
    # A pair that does not count becomes a pair of a token with itself, which changes nothing.
    later = torch.where((link >= temporal).view(-1), anchor[frame:], earlier)
    return Tokens(level, anchor, cell, [anchor, *_rounds(cell, earlier, later, rounds)], link)


def _rounds(cell: torch.Tensor, earlier: torch.Tensor, later: torch.Tensor, number: int) -> list[torch.Tensor]:
    """The representatives after each round; see :func:`sttm_lmms.methods.sttm.temporal.representatives`.

    The minimum over a pair is the minimum of a token's own value, which scattering includes, and its partner's.
    """
    token, partner = torch.cat((earlier, later)), torch.cat((later, earlier))
    lowered = cell.scatter_reduce(0, token, partner, "amin")
    found = [lowered[lowered]]
    for _ in range(number - 1):
        lowered = found[-1].scatter_reduce(0, token, found[-1][partner], "amin")
        found.append(lowered[lowered])
    return found
