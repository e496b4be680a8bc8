"""The temporal step: directed pairwise merging over consecutive frames (arXiv 2507.07990, section 3.3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch

from sttm_lmms.methods.sttm.quadtree import Partition, Quadtrees
from sttm_lmms.methods.sttm.similarity import EPS, row_dots


@dataclass(frozen=True)
class Pairs:
    """Tokens of consecutive frames of which one box contains the other.

    Attributes:
        cell: ``[P]`` int64, flat index, in the earlier frame, of the top-left cell of the smaller box; ascending.
        earlier_level, later_level: ``[P]`` int64, pyramid levels of the two tokens over that cell.
        earlier, later: ``[P]`` int64, their anchors.
    """

    cell: torch.Tensor
    earlier_level: torch.Tensor
    later_level: torch.Tensor
    earlier: torch.Tensor
    later: torch.Tensor


@dataclass(frozen=True)
class Merged:
    """Tokens after the temporal step.

    Attributes:
        owner: ``[T, H, W]`` int64, anchor of the token that stands for each cell.
        later: ``[P]`` int64, anchors of tokens of which each overlaps one of the frame before; None if the step is off.
        link: ``[P]`` float32, similarity of the two.
    """

    owner: torch.Tensor
    later: torch.Tensor | None = None
    link: torch.Tensor | None = None


def overlapping_pairs(partition: Partition) -> Pairs:
    """All pairs, in O(T*H*W): quadtree boxes are nested or disjoint, so the smaller one's top-left cell tells both."""
    frame = partition.anchor[0].numel()
    is_anchor = partition.is_anchor
    cell = (is_anchor[:-1] | is_anchor[1:]).flatten().nonzero().squeeze(1)
    anchor, level = partition.anchor.flatten(), partition.level.flatten()
    return Pairs(cell, level[cell], level[cell + frame], anchor[cell], anchor[cell + frame])


def pair_similarities(
    trees: Quadtrees, cell: torch.Tensor, earlier_level: torch.Tensor, later_level: torch.Tensor
) -> torch.Tensor:
    """``[P]`` float32 cosine similarities between the nodes over a cell in one frame and in the next.

    Args:
        trees: the video's quadtrees.
        cell: ``[P]`` int64, flat index of a cell in any frame but the last.
        earlier_level, later_level: ``[P]`` int64, pyramid levels of the two nodes.
    """
    levels = len(trees.levels)
    height, width = trees.layout.sizes[-1]
    kind = earlier_level * levels + later_level
    # Pairs of the same two levels go together, so that both sides are plain row look-ups.
    kind, order = kind.sort(stable=True)
    bounds = torch.searchsorted(kind, torch.arange(levels**2 + 1, device=kind.device)).tolist()
    similarity = torch.empty(len(cell), dtype=torch.float32, device=cell.device)
    for i, (start, end) in enumerate(pairwise(bounds)):
        if start == end:
            continue
        (a, b), member = divmod(i, levels), order[start:end]
        node_a, node_b = trees.layout.node(a, cell[member]), trees.layout.node(b, cell[member] + height * width)
        scale = (trees.norms[a][node_a] + EPS) * (trees.norms[b][node_b] + EPS)
        dots = row_dots(trees.rows(a), trees.rows(b), node_a, node_b, scale.shape[-1])
        similarity[member] = (dots / scale).mean(-1)
    return similarity


def similarities_of(trees: Quadtrees, pairs: Pairs) -> torch.Tensor:
    """``[P]`` float32 cosine similarities of pairs, measured."""
    return pair_similarities(trees, pairs.cell, pairs.earlier_level, pairs.later_level)


def merge_in_time(
    partition: Partition, temporal_threshold: float, similarities: Callable[[Pairs], torch.Tensor]
) -> Merged:
    """Merge the tokens of consecutive frames.

    Args:
        partition: the tokens of the spatial step.
        temporal_threshold: pairs at least as similar merge; at or below 0 the step is off.
        similarities: ``[P]`` float32 cosine similarities of pairs; called at most once.
    """
    if temporal_threshold <= 0 or len(partition.anchor) == 1:
        return Merged(partition.anchor)
    pairs = overlapping_pairs(partition)
    link = similarities(pairs)
    kept = link >= temporal_threshold
    return Merged(representatives(partition, pairs.earlier[kept], pairs.later[kept]), pairs.later, link)


def representatives(partition: Partition, earlier: torch.Tensor, later: torch.Tensor) -> torch.Tensor:
    """``[T, H, W]`` int64: anchor of the token that stands for each cell after merging the pairs ``[P]`` of anchors.

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
