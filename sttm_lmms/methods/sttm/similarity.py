"""Norms and dot products in float32 without a float32 copy of the whole input: work goes block by block."""

from __future__ import annotations

from collections.abc import Iterator

import torch

EPS = 1e-8
"""Keeps a cosine with a zero vector finite."""

CPU_BLOCK = 1 << 19
"""Numbers in a block on CPUs, where blocks should stay in the cache."""

DEVICE_BLOCK = 1 << 23
"""Numbers in a block elsewhere, where large blocks mean few kernel launches."""


def block_rows(table: torch.Tensor) -> int:
    """How many rows of ``[n, C]`` make up a block."""
    size = CPU_BLOCK if table.device.type == "cpu" else DEVICE_BLOCK
    return max(1, size // table.shape[-1])


def blocks(length: int, step: int) -> Iterator[slice]:
    """Slices of ``step`` that cover ``length``."""
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def row_norms(table: torch.Tensor, head_dim: int | None) -> torch.Tensor:
    """Norms of the rows of ``[n, C]``: ``[n, C / head_dim]`` float32; without ``head_dim`` the row is one head."""
    rows = table.unflatten(-1, (-1, head_dim or table.shape[-1]))
    norms = torch.empty(rows.shape[:2], dtype=torch.float32, device=table.device)
    for block in blocks(len(table), block_rows(table)):
        norms[block] = torch.linalg.vector_norm(rows[block], dim=-1, dtype=torch.float32)
    return norms


def row_dots(
    a: torch.Tensor, b: torch.Tensor, a_index: torch.Tensor | None, b_index: torch.Tensor, heads: int
) -> torch.Tensor:
    """Dot products of the rows ``a[a_index]`` and ``b[b_index]`` per head: ``[len(b_index), heads]`` float32.

    ``a_index=None`` takes all rows of ``a`` in order.
    """
    dots = torch.empty(len(b_index), heads, dtype=torch.float32, device=a.device)
    for block in blocks(len(b_index), block_rows(a)):
        left = a[block] if a_index is None else a.index_select(0, a_index[block])
        products = left.float() * b.index_select(0, b_index[block])
        dots[block] = products.unflatten(-1, (heads, -1)).sum(-1)
    return dots
