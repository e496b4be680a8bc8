"""The features of the merged tokens: averages over the cells that each of them stands for."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from sttm_lmms.methods.ops import CPU_BLOCK, blocks
from sttm_lmms.methods.sttm.cluster import Labels
from sttm_lmms.methods.sttm.grid import Grid
from sttm_lmms.types import MergedTokens


def average(features: torch.Tensor, grid: Grid, labels: Labels, weighted_avg: bool) -> MergedTokens:
    """The mean of the nodes that joined each token, or with ``weighted_avg`` of all their cells.

    Over cells, each with the weight that it has in the mean of means that is its node's feature;
    summed up in float32 (float64 for float64). No host sync.

    Args:
        features: ``[T, H, W, C]``.
        grid: the tables of H x W.
        labels: the tokens.
        weighted_avg: see above.
    """
    level, owner = labels.level.view(len(features), grid.cells), labels.owner
    ordered, order = owner.sort(stable=True)
    # A token's first cell is its anchor; all others lie behind theirs. (Differences, as CUDA does
    # not sort truth values in every version of torch.)
    start = (ordered - order).sort(descending=True, stable=True).indices[: labels.kept]
    survivor = order.index_select(0, start)
    token = torch.searchsorted(survivor, owner)
    counts = torch.searchsorted(ordered, survivor, right=True) - start
    boxes = grid.box[level.take(survivor), survivor % grid.cells]
    torch.floor_divide(survivor, grid.cells, out=boxes[:, 0])
    means = _means(features.flatten(0, 2), grid, level, order, start, token, weighted_avg)
    return MergedTokens(means, boxes, counts, token.view(features.shape[:3]))


def _means(
    rows: torch.Tensor,
    grid: Grid,
    level: torch.Tensor,
    order: torch.Tensor,
    start: torch.Tensor,
    token: torch.Tensor,
    weighted_avg: bool,
) -> torch.Tensor:
    """``[N', C]`` in the dtype of ``rows``: bags of the rows ``order``, each from a ``start``
    on."""
    half = rows.dtype == torch.float16
    if weighted_avg and not half:
        return F.embedding_bag(order, rows, start, mode="mean")
    share = grid.share[level, grid.cell].view(-1, 1)
    if weighted_avg:
        share = torch.ones_like(share)
    # A node's shares sum up to 1. All are powers of two: the sum is exact, in any order.
    members = F.embedding_bag(order, share, start, mode="sum")
    if half:
        # Sums would overflow: divided by the next power of two before, by the rest afterwards,
        # which is as exact.
        below = members - 0.5
        scale = torch.frexp(below).mantissa / below
        members = members * scale
        share = share * scale[token]
    weight = share.take(order).to(rows.dtype)
    means = F.embedding_bag(order, rows, start, mode="sum", per_sample_weights=weight)
    # In half precision a division makes a float32 copy: on CPUs of a block at a time, which stays
    # in the cache.
    step = len(means) if grid.dense else max(1, CPU_BLOCK // rows.shape[-1])
    for block in blocks(len(means), step):
        means[block].div_(members[block])
    return means
