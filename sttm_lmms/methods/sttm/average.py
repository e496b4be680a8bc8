"""Averaging of tokens that live on different levels of the pyramid."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F

from sttm_lmms.methods.sttm.quadtree import Quadtrees
from sttm_lmms.methods.sttm.similarity import block_rows


def average_groups(
    trees: Quadtrees, anchor: torch.Tensor, level: torch.Tensor, weight: torch.Tensor, sizes: torch.Tensor
) -> torch.Tensor:
    """Weighted sums of tokens' features, accumulated in float32 one block of groups at a time.

    Args:
        trees: holds the features.
        anchor: ``[n]`` int64, the tokens; members of a group next to each other, groups in output order.
        level: ``[n]`` int64, their pyramid levels.
        weight: ``[n]`` float32, share of each token in its group's mean.
        sizes: ``[N']`` int64, tokens in each group, at least 1.

    Returns:
        ``[N', C]`` in the dtype of the input. A group of one token with weight 1 is copied bit by bit.
    """
    tables = [trees.rows(i) for i in range(len(trees.levels))]
    device, channels = anchor.device, tables[-1].shape[-1]
    place = [(level == i).nonzero().squeeze(1) for i in range(len(tables))]
    node = [trees.layout.node(i, anchor[where]) for i, where in enumerate(place)]

    # Blocks of whole groups; all bounds come to the host at once.
    ends = F.pad(sizes.cumsum(0), (1, 0))
    wanted = torch.arange(0, len(anchor) + block_rows(tables[-1]), block_rows(tables[-1]), device=device)
    group_cut = torch.searchsorted(ends, wanted).clamp(max=len(sizes)).unique_consecutive()
    member_cut = ends[group_cut]
    cuts = torch.stack([group_cut, member_cut, *(torch.searchsorted(where, member_cut) for where in place)], 1).tolist()

    out = torch.empty(len(sizes), channels, dtype=tables[-1].dtype, device=device)
    for (group, start, *first), (group_end, stop, *last) in pairwise(cuts):
        members = torch.empty(stop - start, channels, dtype=torch.float32, device=device)
        for table, where, source, i, j in zip(tables, place, node, first, last, strict=True):
            if i < j:
                members.index_copy_(0, where[i:j] - start, table.index_select(0, source[i:j]).float())
        index = torch.arange(stop - start, device=device)
        offsets = ends[group:group_end] - start
        out[group:group_end] = F.embedding_bag(
            index, members, offsets, mode="sum", per_sample_weights=weight[start:stop]
        )
    return out
