"""Reading and averaging token features that live on different levels of the pyramid."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from sttm_lmms.merging.quadtree import Quadtrees
from sttm_lmms.merging.similarity import block_rows


class TokenRows:
    """The features of n tokens, given by pyramid level and anchor ``[n]``, readable block by block in float32."""

    def __init__(self, trees: Quadtrees, level: torch.Tensor, anchor: torch.Tensor) -> None:
        self._tables = [grid.flatten(0, 2) for grid in trees.levels]
        self._norms = [grid.flatten(0, 2) for grid in trees.norms]
        self._length = len(level)
        node = trees.layout.nodes(level, anchor)
        self._places = [(level == i).nonzero().squeeze(1) for i in range(len(self._tables))]
        self._nodes = [node[place] for place in self._places]

    def norms(self) -> torch.Tensor:
        """``[n, heads]`` float32."""
        out = self._norms[0].new_empty(self._length, self._norms[0].shape[-1])
        for table, place, node in zip(self._norms, self._places, self._nodes, strict=True):
            out[place] = table[node]
        return out

    def even_bounds(self) -> list[int]:
        """Bounds that cut the tokens into equal blocks."""
        step = block_rows(self._tables[0].shape[-1], self._tables[0].device)
        return [*range(0, self._length, step), self._length]

    def blocks(self, bounds: list[int]) -> Iterator[torch.Tensor]:
        """Float32 rows ``[bounds[i + 1] - bounds[i], C]`` for each i."""
        device = self._tables[0].device
        wanted = torch.tensor(bounds, device=device)
        cuts = torch.stack([torch.searchsorted(place, wanted) for place in self._places], 1).tolist()
        for start, stop, first, last in zip(bounds, bounds[1:], cuts, cuts[1:], strict=False):
            out = torch.empty(stop - start, self._tables[0].shape[-1], dtype=torch.float32, device=device)
            for table, place, node, i, j in zip(self._tables, self._places, self._nodes, first, last, strict=True):
                if i < j:
                    out.index_copy_(0, place[i:j] - start, table.index_select(0, node[i:j]).float())
            yield out


def average_groups(rows: TokenRows, weight: torch.Tensor, sizes: torch.Tensor, out: torch.Tensor) -> None:
    """Fill ``out`` ``[N', C]`` with weighted sums of consecutive rows, accumulated in float32.

    Args:
        rows: n tokens, the members of each group next to each other, groups in output order.
        weight: ``[n]`` float32, the share of each token in its group's mean.
        sizes: ``[N']`` int64, tokens in each group.
        out: any float dtype.
    """
    ends = F.pad(sizes.cumsum(0), (1, 0))
    step = block_rows(out.shape[-1], out.device)
    wanted = torch.arange(0, len(weight) + step, step, device=out.device)
    group_bounds = torch.searchsorted(ends, wanted).clamp(max=len(sizes)).unique_consecutive()
    groups, bounds = torch.stack((group_bounds, ends[group_bounds])).tolist()
    for i, block in enumerate(rows.blocks(bounds)):
        members, first, last = slice(bounds[i], bounds[i + 1]), groups[i], groups[i + 1]
        index = torch.arange(len(block), device=out.device)
        offsets = ends[first:last] - bounds[i]
        mean = F.embedding_bag(index, block, offsets, mode="sum", per_sample_weights=weight[members])
        out[first:last] = mean.to(out.dtype)
