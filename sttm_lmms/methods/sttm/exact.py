"""A budget met to the token: thresholds that merge slightly too far, then the least similar tokens
split off again.

Thresholds alone cannot give every number of tokens. What the search leaves of the budget is spent
on tokens that joined an earlier one, least similar to the frame before first: each becomes a token
of its own again. Where not enough tokens joined one (single frames), the quadtree nodes that are
least similar to their children are replaced by these; of the last one, children that would be too
many stay with their first sibling.

Below a video's floor, where even the lowest thresholds keep too many, ``floor="join"`` goes on:
tokens join the frame before, most similar first; then, as only the first frame's are left,
neighbours in sequence order join.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from sttm_lmms.methods.sttm.cluster import Labels
from sttm_lmms.methods.sttm.grid import Grid
from sttm_lmms.methods.sttm.similarity import Similarities


def split_to_count(labels: Labels, similarities: Similarities, grid: Grid, count: int) -> Labels:
    """Split tokens until there are ``count``; ``labels`` itself if there are as many already."""
    if count <= labels.kept:
        return labels
    if count <= labels.after_spatial and labels.frame_similarity is not None:
        return _leave_groups(labels, grid, count)
    return _split_nodes(labels, similarities, grid, count)


def _leave_groups(labels: Labels, grid: Grid, count: int) -> Labels:
    """The tokens that are least similar to the frame before leave the tokens that they have joined.
    No host sync."""
    assert labels.frame_similarity is not None
    # NaN is like nothing, too: such a token leaves first.
    link = labels.frame_similarity.nan_to_num(nan=-torch.inf)
    later = labels.anchor[grid.cells :]
    similarity = link.new_full(labels.anchor.shape, torch.inf)
    similarity = similarity.scatter_reduce(0, later, link, "amax", include_self=False)
    cell = torch.arange(len(similarity), device=similarity.device)
    # Cells that are no anchor, and tokens that stand for themselves, come last.
    order = similarity.masked_fill(labels.owner == cell, torch.inf).sort(stable=True).indices
    chosen = order[: count - labels.kept]
    owner = labels.owner.scatter(0, chosen, chosen)[labels.anchor]
    return replace(labels, owner=owner, kept=count)


def _split_nodes(labels: Labels, similarities: Similarities, grid: Grid, count: int) -> Labels:
    """Undo the temporal step, and replace quadtree nodes by their children until there are
    ``count`` tokens, or only single cells."""
    min_child = similarities.min_child_similarity.squeeze(2).transpose(0, 1).flatten(1)
    level, owner, missing = labels.level.clone(), None, count - labels.after_spatial
    cell = torch.arange(len(level), device=level.device)
    start, local = cell // grid.cells * grid.cells, cell % grid.cells

    def anchors(level: torch.Tensor) -> torch.Tensor:
        return start + grid.anchor[level, local]

    while missing > 0:
        nodes = ((anchors(level) == cell) & (level < grid.levels - 1)).nonzero().squeeze(1)
        if not len(nodes):
            break
        similarity = min_child[level[nodes], nodes]
        nodes = nodes[similarity.sort(stable=True).indices]
        more = grid.children[level[nodes], local[nodes]] - 1
        whole = nodes[more.cumsum(0) <= missing]
        if not len(whole):
            whole = nodes[:1]
        parent = anchors(level)
        split = torch.zeros_like(cell, dtype=torch.bool).index_fill(0, whole, True)[parent]
        level[split] += 1
        missing -= int((grid.children[level[whole] - 1, local[whole]] - 1).sum())
        if missing < 0:
            # Too many by 1 or 2: the node's last children stay with its first one.
            children = ((anchors(level) == cell) & (parent == whole[0])).nonzero().squeeze(1)
            owner = anchors(level)
            owner[torch.isin(owner, children[missing:])] = children[0]
    anchor = anchors(level)
    return replace(labels, level=level, anchor=anchor, owner=anchor if owner is None else owner, kept=count)


def join_to_count(labels: Labels, grid: Grid, count: int) -> Labels:
    """Join tokens until there are ``count``, at least 1; ``labels`` itself if there are no more.

    A token that joins goes on as part of the one that it joins, which keeps its place. Each of them
    joins the token that is most similar to it in the frame before, whatever the similarity; NaN
    comes last.
    """
    if labels.kept <= count:
        return labels
    cell = torch.arange(labels.cells, device=labels.owner.device)
    survivor = (labels.owner == cell).nonzero().squeeze(1)
    in_first_frame = int((survivor < grid.cells).sum())
    parent = cell.clone()
    if labels.kept > in_first_frame:
        similarity, partner = _most_similar_before(labels, grid)
        later = survivor[in_first_frame:]
        order = similarity[later].sort(descending=True, stable=True).indices
        joins = later[order[: labels.kept - max(count, in_first_frame)]]
        parent[joins] = partner[joins]
    if count < in_first_frame:
        rank = torch.arange(in_first_frame, device=cell.device)
        # Rank i goes to group i * count // n, whose first member is the smallest rank that does.
        first = -(-(rank * count // in_first_frame) * in_first_frame // count)
        parent[survivor[:in_first_frame]] = survivor[first]
    # A token may join one that joins another: always an earlier one, at most one a frame.
    for _ in range((labels.cells // grid.cells).bit_length() + 1):
        parent = parent[parent]
    return replace(labels, owner=parent[labels.owner], kept=count)


def _most_similar_before(labels: Labels, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """For each anchor of a later frame: the similarity of the token that overlaps it in the frame
    before and is most similar to it, and the anchor of the token that stands for that one. Both
    ``[N]``."""
    earlier, later = labels.owner[: -grid.cells], labels.anchor[grid.cells :]
    if labels.frame_similarity is None:
        link = torch.zeros(len(later), device=later.device)
    else:
        link = labels.frame_similarity.nan_to_num(nan=-torch.inf)
    best = link.new_full(labels.anchor.shape, -torch.inf).scatter_reduce(0, later, link, "amax")
    # First among equals.
    candidate = torch.where(link == best[later], earlier, labels.cells)
    partner = torch.full_like(labels.anchor, labels.cells).scatter_reduce(0, later, candidate, "amin")
    return best, partner
