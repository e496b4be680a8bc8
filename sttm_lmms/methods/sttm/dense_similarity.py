"""Norms and similarities of a whole video in few large operations: nodes of a frame against nodes, as matrix products.

The sums are float32's: inputs in half precision are multiplied as they are where torch's product can give float32, and
as float32 copies of a few frames elsewhere. (float32 inputs follow ``torch.set_float32_matmul_precision``; its default
is exact.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from sttm_lmms.methods.sttm.dense_tables import Tables
from sttm_lmms.methods.sttm.similarity import EPS

TABLE_SHARE = 0.5
"""Tables of products may take this much of the input's bytes at a time; more frames go block by block."""

TABLE_BYTES = 1 << 24
"""... but always as many bytes as this."""


def pool(features: torch.Tensor, tables: Tables, weighted_avg: bool) -> torch.Tensor:
    """Features of the coarse nodes of ``[T, H, W, C]``: ``[T, n, C]`` in its dtype, in the order of ``tables``."""
    if not tables.pieces:
        return features.new_empty(len(features), 0, features.shape[-1])
    grid = features.movedim(-1, 1)
    levels: list[torch.Tensor] = []
    for cells in reversed(tables.cells_under):
        weight = cells if weighted_avg else None
        grid = _average(grid) if weight is None else _weighted_average(grid, weight)
        levels.insert(0, grid.movedim(1, -1))
    if len(tables.bands) == 1:
        return torch.cat([level.flatten(1, 2) for level in levels], 1)
    return torch.cat([levels[level][:, rows].flatten(1, 2) for level, rows in tables.pieces], 1)


def _average(grid: torch.Tensor) -> torch.Tensor:
    """Mean over children, ``[..., h, w]`` -> ``[..., ceil(h/2), ceil(w/2)]``."""
    return F.avg_pool2d(grid, 2, padding=(grid.shape[-2] % 2, grid.shape[-1] % 2), count_include_pad=False)


def _weighted_average(grid: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    # Only levels above the first pooling have nodes of different sizes, so the float32 copy is a quarter of the input.
    return (_average(grid * weight) / _average(weight)).to(grid.dtype)


@dataclass(frozen=True)
class Measured:
    """All similarities that decide about a video's tokens.

    Attributes:
        agreement: ``[T, L - 1, 1, H*W]`` float32, lowest cosine similarity between the coarse node over each cell and
            its children.
        barrier: ``[T, L - 1, 1, H*W]`` float32, the highest of the node's agreement and of those of the nodes above:
            a threshold up to that stops the descent there or before.
        similarity: ``[T - 1, L * L, H*W]`` float32, cosine similarity between the nodes over a cell in one frame and
            in the next, for each pair of levels in the order of ``Tables.pair``; None if it was not asked for.
    """

    agreement: torch.Tensor
    barrier: torch.Tensor
    similarity: torch.Tensor | None


def measure(
    features: torch.Tensor, tables: Tables, *, weighted_avg: bool, head_dim: int | None, temporal: bool
) -> Measured:
    """Measure ``[T, H, W, C]``; with ``head_dim`` similarities are averages over heads."""
    fine, coarse = features.flatten(1, 2), pool(features, tables, weighted_avg)
    node = None if head_dim is not None else _norms(fine, coarse)
    if tables.coarse:
        agreement = _frame_by_frame(fine, coarse, tables, head_dim)
        if node is not None:
            agreement = agreement / node.clamp(min=EPS)[:, tables.family].prod(1)
        agreement = agreement.amin(-1)
        barrier = agreement.cummax(1).values
    else:
        agreement = barrier = fine.new_empty(len(fine), 0, 1, tables.cells, dtype=torch.float32)
    if not temporal:
        return Measured(agreement, barrier, None)
    similarity = _frame_to_frame(fine, coarse, tables, head_dim)
    if node is not None:
        consecutive = (node + EPS).unfold(0, 2, 1)
        similarity = similarity / consecutive[:, tables.pair, tables.pair_frame].prod(1)
    return Measured(agreement, barrier, similarity)


def _norms(fine: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
    """``[T, H*W + n]`` float32 norms of all nodes, as slots."""
    return torch.cat([torch.linalg.vector_norm(part, dim=-1, dtype=torch.float32) for part in (fine, coarse)], 1)


def _frame_by_frame(fine: torch.Tensor, coarse: torch.Tensor, tables: Tables, head_dim: int | None) -> torch.Tensor:
    """``[T, L - 1, 1, H*W, 4]``: products of the coarse node over each cell and its children."""
    found = []
    size = 4 * tables.coarse * (tables.cells + tables.coarse)
    for frames in _blocks(fine, len(fine), size, tables.cells + tables.coarse, head_dim):
        nodes = _comparable(_of(coarse, frames), head_dim, _clamp)
        parents = nodes.mT
        products = _products(_comparable(_of(fine, frames), head_dim, _clamp), parents, head_dim)
        if tables.levels > 2:
            products = torch.cat((products, _products(nodes, parents, head_dim)), 1)
        found.append(products[:, tables.child, tables.parent])
    return found[0] if len(found) == 1 else torch.cat(found)


def _of(part: torch.Tensor, frames: slice) -> torch.Tensor:
    """These frames, and no view of all of them."""
    return part if frames == slice(0, len(part)) else part[frames]


def _frame_to_frame(fine: torch.Tensor, coarse: torch.Tensor, tables: Tables, head_dim: int | None) -> torch.Tensor:
    """``[T - 1, L * L, H*W]``: products of the nodes over each cell in consecutive frames."""
    whole = []
    for band in tables.bands:
        found = []
        for frames in _blocks(fine, len(fine) - 1, 4 * band.nodes**2, 2 * band.nodes, head_dim):
            following = slice(frames.start + 1, frames.stop + 1)
            f0, f1 = (_comparable(fine[block, band.cells], head_dim, _add) for block in (frames, following))
            f1 = f1.mT
            parts = [_products(f0, f1, head_dim)[:, band.cell, band.cell]]
            if len(band.over):
                c0, c1 = (_comparable(coarse[block, band.coarse], head_dim, _add) for block in (frames, following))
                c1 = c1.mT
                parts.append(_products(f0, c1, head_dim)[:, band.cell, band.over])
                parts.append(_products(c0, f1, head_dim)[:, band.over, band.cell])
                parts.append(_products(c0, c1, head_dim)[:, band.earlier, band.later])
            found.append(torch.cat(parts, 1) if len(parts) > 1 else parts[0])
        whole.append(found[0] if len(found) == 1 else torch.cat(found))
    return whole[0] if len(whole) == 1 else torch.cat(whole, -1)


def _blocks(fine: torch.Tensor, length: int, table_bytes: int, nodes: int, head_dim: int | None) -> Iterator[slice]:
    """Slices of ``length`` frames, so large that tables and float32 copies of ``nodes`` rows a frame stay small.

    How many there are depends on the sizes of a frame, not on their number.
    """
    if _is_copied(fine, head_dim):
        table_bytes += 4 * nodes * fine.shape[-1]
    allowed = max(TABLE_BYTES, int(TABLE_SHARE * fine.numel() * fine.element_size()))
    step = max(1, allowed // table_bytes)
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def _gives_float32(table: torch.Tensor) -> bool:
    return table.dtype == torch.float32 or (
        table.dtype in (torch.bfloat16, torch.float16)
        and table.device.type in ("cuda", "meta")
        and torch.version.hip is None
        and hasattr(torch.ops.aten.bmm, "dtype")
    )


def _is_copied(table: torch.Tensor, head_dim: int | None) -> bool:
    return head_dim is not None or not _gives_float32(table)


def _comparable(rows: torch.Tensor, head_dim: int | None, safe: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """``[t, n, C]`` as it is multiplied: as it is, as float32, or with every head at unit length."""
    if head_dim is not None:
        heads = rows.unflatten(-1, (-1, head_dim))
        return (heads / safe(torch.linalg.vector_norm(heads, dim=-1, keepdim=True, dtype=torch.float32))).flatten(-2)
    return rows.float() if _is_copied(rows, head_dim) else rows


def _clamp(norms: torch.Tensor) -> torch.Tensor:
    return norms.clamp(min=EPS)


def _add(norms: torch.Tensor) -> torch.Tensor:
    return norms + EPS


def _products(a: torch.Tensor, b: torch.Tensor, head_dim: int | None) -> torch.Tensor:
    """``[t, n, C] x [t, C, m] -> [t, n, m]`` float32, averaged over heads."""
    if head_dim is not None:
        return torch.bmm(a, b) / (a.shape[-1] // head_dim)
    return torch.bmm(a, b) if a.dtype == torch.float32 else torch.bmm(a, b, out_dtype=torch.float32)
