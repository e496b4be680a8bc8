"""Similarities on accelerators, where launches and waiting are what costs: few large operations, no
host sync.

Matrix products of all nodes of a frame, of which those that count are picked. Inputs in half
precision are multiplied as they are where torch has such a product with float32 sums, and as
float32 copies of a few frames elsewhere. (float32 inputs follow
``torch.set_float32_matmul_precision``; its default is exact.)
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch

from sttm_lmms.methods.ops import EPS, blocks
from sttm_lmms.methods.sttm.grid import Grid
from sttm_lmms.methods.sttm.pyramid import coarse_nodes

TABLE_SHARE = 0.5
"""Tables of products may take this much of the input's bytes at a time; more frames go in turns."""

TABLE_BYTES = 1 << 24
"""... but always as many bytes as this."""


def measure_by_products(
    features: torch.Tensor, grid: Grid, weighted_avg: bool, head_dim: int | None, temporal: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``[T, n]`` similarity of each coarse node and its least similar child, ``[T - 1, P]`` of all
    pairs in consecutive frames."""
    fine = features.flatten(1, 2)
    coarse = torch.cat([fine[:, :0], *coarse_nodes(features, grid, weighted_avg)], 1)
    child = _child_products(fine, coarse, grid, head_dim)
    frame = _frame_products(fine, coarse, grid, head_dim) if temporal else None
    if head_dim is None:
        norms = torch.cat([torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float32) for rows in (fine, coarse)], 1)
        clamped = norms.clamp(min=EPS)
        child = child / (clamped[:, grid.child] * clamped[:, grid.cells :, None])
        if frame is not None:
            ends = (norms + EPS)[:, grid.pairs]
            frame = frame / (ends[:-1, 0] * ends[1:, 1])
    return child.amin(-1), frame


def _child_products(fine: torch.Tensor, coarse: torch.Tensor, grid: Grid, head_dim: int | None) -> torch.Tensor:
    """``[T, n, 4]``: products of each coarse node and those that it is compared with."""
    found = []
    for frames in _frame_blocks(fine, len(fine), 4 * len(grid.child) * grid.nodes, grid.nodes, head_dim):
        parents = _comparable(_part(coarse, frames), head_dim)
        products = [_products(_comparable(_part(fine, frames), head_dim), parents.mT, head_dim)]
        if grid.levels > 2:
            products.append(_products(parents, parents.mT, head_dim))
        found.append(_cat(products)[:, grid.child, grid.parent])
    return _cat(found, 0)


def _frame_products(fine: torch.Tensor, coarse: torch.Tensor, grid: Grid, head_dim: int | None) -> torch.Tensor:
    """``[T - 1, P]``: products of all pairs of nodes in consecutive frames."""
    whole = []
    for block in grid.blocks:
        found = []
        nodes = block.cells.stop - block.cells.start + block.coarse.stop - block.coarse.start
        for frames in _frame_blocks(fine, len(fine) - 1, 4 * nodes**2, 2 * nodes, head_dim):
            following = slice(frames.start + 1, frames.stop + 1)
            earlier, later = (
                (_comparable(fine[at, block.cells], head_dim), _comparable(coarse[at, block.coarse], head_dim))
                for at in (frames, following)
            )
            kinds = zip(product(earlier, [rows.mT for rows in later]), block.pairs, strict=True)
            found.append(_cat([_products(a, b, head_dim)[:, i, j] for (a, b), (i, j) in kinds if len(i)]))
        whole.append(_cat(found, 0))
    return _cat(whole)


def _frame_blocks(
    fine: torch.Tensor, length: int, table_bytes: int, nodes: int, head_dim: int | None
) -> Iterator[slice]:
    """Slices of ``length`` frames, so large that tables and float32 copies of ``nodes`` rows a
    frame stay small.

    How many there are depends on the sizes of a frame, not on their number.
    """
    if _is_copied(fine, head_dim):
        table_bytes += 4 * nodes * fine.shape[-1]
    allowed = max(TABLE_BYTES, int(TABLE_SHARE * fine.numel() * fine.element_size()))
    return blocks(length, max(1, allowed // max(1, table_bytes)))


def _part(rows: torch.Tensor, frames: slice) -> torch.Tensor:
    """These frames; no view where they are all."""
    return rows if frames == slice(0, len(rows)) else rows[frames]


def _cat(parts: list[torch.Tensor], dim: int = 1) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _is_copied(rows: torch.Tensor, head_dim: int | None) -> bool:
    """Whether rows have to be changed, or turned into float32, before they are multiplied."""
    sums_in_float32 = rows.dtype == torch.float32 or (
        rows.dtype in (torch.bfloat16, torch.float16)
        and rows.device.type in ("cuda", "meta")
        and torch.version.hip is None
        and hasattr(torch.ops.aten.bmm, "dtype")
    )
    return head_dim is not None or not sums_in_float32


def _comparable(rows: torch.Tensor, head_dim: int | None) -> torch.Tensor:
    """``[t, n, C]`` as it is multiplied: as it is, as float32, or with every head at unit
    length."""
    if head_dim is not None:
        heads = rows.unflatten(-1, (-1, head_dim))
        norms = torch.linalg.vector_norm(heads, dim=-1, keepdim=True, dtype=torch.float32)
        return (heads / norms.clamp(min=EPS)).flatten(-2)
    return rows.float() if _is_copied(rows, head_dim) else rows


def _products(a: torch.Tensor, b: torch.Tensor, head_dim: int | None) -> torch.Tensor:
    """``[t, n, C] x [t, C, m] -> [t, n, m]`` float32, averaged over heads."""
    if head_dim is not None:
        return torch.bmm(a, b) / (a.shape[-1] // head_dim)
    return torch.bmm(a, b) if a.dtype == torch.float32 else torch.bmm(a, b, out_dtype=torch.float32)
