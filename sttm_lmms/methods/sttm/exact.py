"""A budget met to the token: thresholds that merge slightly too far, then the least similar tokens split off again.

Thresholds alone cannot give every number of tokens. What the search leaves of the budget is spent on tokens that joined
an earlier one, least similar to the frame before first: each becomes a token of its own again. Where not enough tokens
joined one (single frames), the quadtree nodes that are least similar to their children are replaced by these; of the
last one, children that would be too many stay with their first sibling.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Labels:
    """Tokens as labels of the cells, flat over frames; an anchor is the index of a token's top-left cell.

    Attributes:
        level: ``[N]`` int64, pyramid level of the token over each cell after the spatial step.
        anchor: ``[N]`` int64, its anchor.
        owner: ``[N]`` int64, anchor of the token that stands for the cell after the temporal step.
    """

    level: torch.Tensor
    anchor: torch.Tensor
    owner: torch.Tensor


def leave_groups(labels: Labels, later: torch.Tensor, link: torch.Tensor, number: int) -> Labels:
    """The ``number`` tokens that are least similar to the frame before leave the tokens that they have joined.

    Waits for nothing. At least ``number`` tokens must have joined others.

    Args:
        labels: the tokens.
        later: ``[P]`` int64, anchors of tokens of which each overlaps one of the frame before.
        link: ``[P]`` float32, similarity of the two.
        number: how many tokens there should be more.
    """
    similarity = link.new_full(labels.anchor.shape, torch.inf)
    similarity = similarity.scatter_reduce(0, later, link, "amax", include_self=False)
    cell = torch.arange(len(similarity), device=similarity.device)
    chosen = similarity.masked_fill(labels.owner == cell, torch.inf).sort(stable=True).indices[:number]
    # A cell that is no anchor can be chosen only where too few tokens have joined others, and changes nothing.
    return replace(labels, owner=labels.owner.scatter(0, chosen, chosen)[labels.anchor])


def split_nodes(labels: Labels, agreement: torch.Tensor, anchors: torch.Tensor, number: int) -> Labels:
    """Split quadtree nodes until there are ``number`` tokens more, or only single cells.

    Args:
        labels: tokens that are single nodes: the temporal step has merged nothing.
        agreement: ``[L - 1, T, H*W]`` float32, similarity of the node over each cell and its least similar child.
        anchors: ``[L, H*W]`` int64, top-left cell of the node over each cell at each level.
        number: how many.
    """
    levels, cells = anchors.shape
    level, owner = labels.level.clone(), None
    cell = torch.arange(len(level), device=level.device)
    start, local = cell // cells * cells, cell % cells
    children = _children(anchors)

    def over(depth: torch.Tensor) -> torch.Tensor:
        return start + anchors[depth, local]

    while number > 0:
        nodes = ((over(level) == cell) & (level < levels - 1)).nonzero().squeeze(1)
        if not len(nodes):
            break
        similarity = agreement.flatten(1)[level[nodes], nodes]
        nodes = nodes[similarity.sort(stable=True).indices]
        more = children[level[nodes], local[nodes]] - 1
        whole = nodes[more.cumsum(0) <= number]
        if not len(whole):
            whole = nodes[:1]
        split = torch.zeros_like(cell, dtype=torch.bool).index_fill(0, whole, True)[over(level)]
        parent = over(level)
        level[split] += 1
        number -= int((children[level[whole] - 1, local[whole]] - 1).sum())
        if number < 0:
            # Too many by 1 or 2: the node's last children stay with its first one.
            brood = torch.nonzero((over(level) == cell) & (parent == whole[0])).squeeze(1)
            owner = over(level)
            owner[torch.isin(owner, brood[number:])] = brood[0]
    return Labels(level, over(level), over(level) if owner is None else owner)


def _children(anchors: torch.Tensor) -> torch.Tensor:
    """``[L - 1, H*W]``: number of children of the node whose top-left cell it is."""
    counts = torch.zeros_like(anchors[:-1])
    cell = torch.arange(anchors.shape[1], device=anchors.device)
    for level in range(len(counts)):
        child = (anchors[level + 1] == cell).nonzero().squeeze(1)
        counts[level].index_add_(0, anchors[level, child], torch.ones_like(child))
    return counts
