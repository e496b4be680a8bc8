"""What several methods do with token vectors: compare rows of a table, average groups of them.

Similarities are float32 whatever the input's dtype, without a float32 copy of the whole input: work
goes block by block.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

EPS = 1e-8
"""Keeps a cosine with a zero vector finite."""

CPU_BLOCK = 1 << 19
"""Numbers in a block on CPUs, where blocks should stay in the cache."""

DEVICE_BLOCK = 1 << 23
"""Numbers in a block elsewhere, where large blocks mean few kernel launches."""


def blocks(length: int, step: int) -> Iterator[slice]:
    """Slices of ``step`` that cover ``length``."""
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def row_norms(table: torch.Tensor) -> torch.Tensor:
    """``[n]`` float32, the norms of the rows of ``[n, C]``."""
    norms = torch.empty(len(table), dtype=torch.float32, device=table.device)
    for block in blocks(len(table), _block_rows(table)):
        norms[block] = torch.linalg.vector_norm(table[block].float(), dim=-1)
    return norms


def row_dots(a: torch.Tensor, b: torch.Tensor, a_index: torch.Tensor, b_index: torch.Tensor) -> torch.Tensor:
    """``[len(a_index)]`` float32, the dot products of the rows ``a[a_index]`` and
    ``b[b_index]``."""
    dots = torch.empty(len(b_index), dtype=torch.float32, device=a.device)
    for block in blocks(len(b_index), _block_rows(a)):
        left, right = a.index_select(0, a_index[block]).float(), b.index_select(0, b_index[block]).float()
        dots[block] = left.mul_(right).sum(-1)
    return dots


def cosine(features: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``[n]`` float32: cosine similarity of the rows ``a[i]`` and ``b[i]`` (``[n]`` int64) of
    ``features`` ``[N, C]``.

    A zero vector has similarity 0 to everything.
    """
    norms = row_norms(features).clamp(min=EPS)
    return row_dots(features, features, a, b) / (norms[a] * norms[b])


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


def _block_rows(table: torch.Tensor) -> int:
    """How many rows of ``[n, C]`` make up a block."""
    size = CPU_BLOCK if table.device.type == "cpu" else DEVICE_BLOCK
    return max(1, size // table.shape[-1])
