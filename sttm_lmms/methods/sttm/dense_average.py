"""Cells sorted by token, and tokens' averages, boxes and counts from them."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from sttm_lmms.methods.sttm.dense_tables import Tables
from sttm_lmms.methods.sttm.exact import Labels


def average_tokens(
    features: torch.Tensor,
    tables: Tables,
    labels: Labels,
    kept: int,
    *,
    weighted_avg: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features, boxes, counts and source map of the tokens, see ``MergedTokens``. Waits for nothing.

    Args:
        features: ``[T, H, W, C]``, N cells.
        tables: of the grid.
        labels: the tokens; ``level`` as ``[T, 1, H*W]``.
        kept: how many tokens there are.
        weighted_avg: average over cells instead of over nodes.
    """
    level, owner = labels.level, labels.owner
    ordered, order = owner.sort(stable=True)
    # A token's first cell is its anchor; all others lie behind theirs. (Differences, as CUDA does not sort truth values
    # in every version of torch.)
    start = (ordered - order).sort(descending=True, stable=True).indices[:kept]
    survivor = order[start]
    token = torch.searchsorted(survivor, owner)
    counts = torch.searchsorted(ordered, survivor, right=True) - start
    box = tables.box[level.take(survivor), survivor % tables.cells]
    torch.floor_divide(survivor, tables.cells, out=box[:, 0])

    rows = features.flatten(0, 2)
    half = features.dtype == torch.float16
    if weighted_avg and not half:
        means = F.embedding_bag(order, rows, start, mode="mean")
        return means, box, counts, token.view(features.shape[:3])
    share = tables.share[level, tables.column].view(-1, 1)
    if weighted_avg:
        share = torch.ones_like(share)
    # A node's shares sum up to 1. All are powers of two: the sum is exact, in any order.
    members = F.embedding_bag(order, share, start, mode="sum")
    if half:
        # Sums would overflow: divided by the next power of two before, by the rest afterwards, which is as exact.
        below = members - 0.5
        scale = torch.frexp(below).mantissa / below
        members = members * scale
        share = share * scale[token]
    weight = share.take(order).to(features.dtype)
    means = F.embedding_bag(order, rows, start, mode="sum", per_sample_weights=weight).div_(members)
    return means, box, counts, token.view(features.shape[:3])
