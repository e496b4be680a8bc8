"""Cells sorted by token, and tokens' averages, boxes and counts from them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from sttm_lmms.methods.sttm.dense_tables import Tables
from sttm_lmms.methods.sttm.dense_union import Tokens


@dataclass(frozen=True)
class Groups:
    """The cells of every surviving token at one pair of thresholds; N cells, N' tokens, of which only the device knows.

    Attributes:
        tables: of the grid.
        tokens: where the tokens lie, B = 1.
        number: ``[1]`` int64, N'.
        token: ``[N]`` int64, the token that stands for each cell.
        order: ``[N]`` int64, cells sorted by token; a token's first cell is its anchor.
        start, end: ``[N]`` int64, bounds of each token's cells in ``order``; from N' on without meaning.
    """

    tables: Tables
    tokens: Tokens
    number: torch.Tensor
    token: torch.Tensor
    order: torch.Tensor
    start: torch.Tensor
    end: torch.Tensor

    @classmethod
    def of(cls, tokens: Tokens, tables: Tables) -> Groups:
        """Sort the cells."""
        number = tokens.survives.flatten().cumsum(0)
        token = (number - 1)[tokens.owner.flatten()]
        ordered, order = token.sort(stable=True)
        cell = tokens.cell.flatten()
        start, end = (torch.searchsorted(ordered, cell, right=right) for right in (False, True))
        return cls(tables, tokens, number[-1:], token, order, start, end)

    def average(
        self, features: torch.Tensor, kept: int, *, weighted_avg: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Features, boxes, counts and source map of the ``kept`` = N' tokens, see ``MergedTokens``."""
        start = self.start[:kept]
        survivor = self.order[start]
        frame, cell = survivor // self.tables.cells, survivor % self.tables.cells
        box = self.tables.box[self.tokens.level.take(survivor), cell]
        return (
            self._means(features, start, weighted_avg),
            torch.cat((frame[:, None], box), 1),
            self.end[:kept] - start,
            self.token.view(features.shape[:3]),
        )

    def _means(self, features: torch.Tensor, start: torch.Tensor, weighted_avg: bool) -> torch.Tensor:
        rows = features.flatten(0, 2)
        half = features.dtype == torch.float16
        if weighted_avg and not half:
            return F.embedding_bag(self.order, rows, start, mode="mean")
        share = self.tables.share[self.tokens.level, self.tables.column].view(-1, 1)
        if weighted_avg:
            share = torch.ones_like(share)
        # A node's shares sum up to 1. All are powers of two: the sum is exact, in any order.
        members = torch.zeros_like(share).index_add_(0, self.token, share)
        if half:
            # Sums would overflow: divided by the next power of two before, by the rest afterwards, which is as exact.
            below = members - 0.5
            scale = torch.frexp(below).mantissa / below
            members = members * scale
            share = share * scale[self.token]
        weight = share.take(self.order).to(features.dtype)
        sums = F.embedding_bag(self.order, rows, start, mode="sum", per_sample_weights=weight)
        return sums.div_(members[: len(start)])
