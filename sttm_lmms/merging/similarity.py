"""Cosine similarities in float32 without a float32 copy of the whole input: work goes block by block."""

from __future__ import annotations

from collections.abc import Iterator

import torch

EPS = 1e-8
"""Keeps a cosine with a zero vector finite."""

_BLOCK_ELEMENTS = {"cpu": 1 << 19}
_DEFAULT_BLOCK_ELEMENTS = 1 << 23


def block_rows(row_elements: int, device: torch.device) -> int:
    """Rows of ``row_elements`` numbers to take at a time: blocks that stay in a CPU's cache, larger ones elsewhere."""
    return max(1, _BLOCK_ELEMENTS.get(device.type, _DEFAULT_BLOCK_ELEMENTS) // max(1, row_elements))


def frame_blocks(features: torch.Tensor) -> Iterator[slice]:
    """Slices over the first dimension that cover ``features``."""
    step = block_rows(features[0].numel(), features.device)
    for start in range(0, features.shape[0], step):
        yield slice(start, start + step)


def head_dots(a: torch.Tensor, b: torch.Tensor, heads: int) -> torch.Tensor:
    """Dot products of ``[..., C]`` rows per head: ``[..., heads]`` float32."""
    return (a.float() * b.float()).unflatten(-1, (heads, -1)).sum(-1)


def head_norms(features: torch.Tensor, head_dim: int | None) -> torch.Tensor:
    """Norms of ``[..., C]`` rows, ``[..., C / head_dim]`` float32; the whole row is one head without ``head_dim``."""
    rows = features.unflatten(-1, (-1, head_dim or features.shape[-1]))
    return torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float32)
