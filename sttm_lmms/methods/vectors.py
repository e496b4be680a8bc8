"""What several methods do with token vectors: compare pairs of them, average groups of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from sttm_lmms.methods.sttm.similarity import EPS, row_dots, row_norms


def cosine(features: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``[n]`` float32: cosine similarity of the rows ``a[i]`` and ``b[i]`` (``[n]`` int64) of ``features`` ``[N, C]``.

    A zero vector has similarity 0 to everything.
    """
    norms = row_norms(features, None).squeeze(1).clamp(min=EPS)
    dots = row_dots(features, features, a, b, heads=1).squeeze(1)
    return dots / (norms[a] * norms[b])


def group_means(
    features: torch.Tensor, group: torch.Tensor, groups: int, weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean of each group's rows, in float32 and in a fixed order on every device.

    Args:
        features: ``[N, C]``.
        group: ``[N]`` int64 in 0..groups-1, the group of each row; no group is empty.
        groups: how many there are.
        weight: ``[N]``, weights of the rows in a weighted mean.

    Returns:
        ``[groups, C]`` float32. A group of one row is that row, bit by bit.
    """
    member = group.argsort(stable=True)
    weight = torch.ones(len(group), device=features.device) if weight is None else weight.float()
    sizes = torch.zeros(groups, dtype=torch.long, device=group.device).index_add_(0, group, torch.ones_like(group))
    total = torch.zeros(groups, device=features.device).index_add_(0, group, weight)
    share = (weight / total[group])[member]
    return F.embedding_bag(member, features.float(), sizes.cumsum(0) - sizes, mode="sum", per_sample_weights=share)
