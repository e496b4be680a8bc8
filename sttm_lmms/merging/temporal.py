"""The temporal step: directed pairwise merging over consecutive frames (arXiv 2507.07990, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sttm_lmms.merging.quadtree import Partition, Quadtrees
from sttm_lmms.merging.rows import TokenRows
from sttm_lmms.merging.similarity import EPS, head_dots


@dataclass(frozen=True)
class Pairs:
    """Tokens of consecutive frames of which one box contains the other.

    Attributes:
        cell: ``[P]`` int64, flat index, in the earlier frame, of the top-left cell of the smaller box; ascending.
        earlier, later: ``[P]`` int64, anchors of the two tokens.
        earlier_level, later_level: ``[P]`` int64, their pyramid levels.
    """

    cell: torch.Tensor
    earlier: torch.Tensor
    later: torch.Tensor
    earlier_level: torch.Tensor
    later_level: torch.Tensor


def overlapping_pairs(partition: Partition) -> Pairs:
    """All pairs, in O(T*H*W): quadtree boxes are nested or disjoint, so the smaller one's top-left cell tells both."""
    frame = partition.anchor[0].numel()
    is_anchor = partition.is_anchor
    cell = (is_anchor[:-1] | is_anchor[1:]).flatten().nonzero().squeeze(1)
    anchor, level = partition.anchor.flatten(), partition.level.flatten()
    return Pairs(cell, anchor[cell], anchor[cell + frame], level[cell], level[cell + frame])


def pair_similarities(trees: Quadtrees, pairs: Pairs) -> torch.Tensor:
    """``[P]`` float32 cosine similarities of the paired tokens' features."""
    earlier = TokenRows(trees, pairs.earlier_level, pairs.earlier)
    later = TokenRows(trees, pairs.later_level, pairs.later)
    scale = (earlier.norms() + EPS) * (later.norms() + EPS)
    bounds = earlier.even_bounds()
    dots = [head_dots(a, b, scale.shape[-1]) for a, b in zip(earlier.blocks(bounds), later.blocks(bounds), strict=True)]
    if not dots:
        return scale.new_empty(0)
    return (torch.cat(dots) / scale).mean(-1)


def representatives(partition: Partition, earlier: torch.Tensor, later: torch.Tensor) -> torch.Tensor:
    """``[T, H, W]`` int64: anchor of the token that represents each cell after merging the kept pairs.

    Not connected components, on purpose: rounds stop as soon as the representatives are stable under path compression,
    as in the published code, so a token joins the earliest of its partners while the other partners stay.
    """
    rep = torch.arange(partition.anchor.numel(), device=partition.anchor.device)
    ends = torch.cat((earlier, later))
    while True:
        lower = torch.minimum(rep[earlier], rep[later])
        rep = rep.scatter_reduce(0, ends, lower.repeat(2), "amin")
        rep = rep[rep]
        if torch.equal(rep, rep[rep]):
            return rep[partition.anchor]
