"""All similarities that decide which tokens of a video merge, measured once.

One definition, two ways to compute it. On CPUs, where bytes are what costs, a few frames at a time: their nodes fit
into the cache, and only the products that count are formed. On accelerators, where launches are what costs: matrix
products of all nodes of a frame, of which those that count are picked.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F

from sttm_lmms.methods.ops import EPS, blocks
from sttm_lmms.methods.sttm.grid import Grid

CPU_BLOCK = 1 << 22
"""Numbers in the nodes that are worked on at a time on CPUs."""

TABLE_SHARE = 0.5
"""On accelerators, tables of products may take this much of the input's bytes at a time; more frames go in turns."""

TABLE_BYTES = 1 << 24
"""... but always as many bytes as this."""


class Thresholds(NamedTuple):
    """The two cosine similarities from which on tokens merge; the temporal step is off at or below 0."""

    spatial: float
    temporal: float


class TokenCount(NamedTuple):
    """Tokens kept at a pair of thresholds, those of the spatial step alone, and the rounds that the union takes."""

    kept: int
    after_spatial: int
    rounds: int


@dataclass(frozen=True)
class Similarities:
    """The similarities of a video's nodes; what thresholds are compared with.

    Attributes:
        min_child_similarity: ``[T, L - 1, 1, H*W]`` float32, cosine similarity between the coarse node over each cell
            and the least similar of its children; -inf where that is not a number.
        running_max_similarity: the same shape, the largest of it and of those of the nodes above: a threshold up to
            that stops the descent there or before.
        frame_similarity: ``[T - 1, P]`` float32, cosine similarity of each pair of :class:`Grid` in consecutive
            frames; None where it was not asked for.
        feature_bytes: of the features that were measured, which bounds the memory that counting takes.
        counts: the token counts at the thresholds that were asked for already.
    """

    min_child_similarity: torch.Tensor
    running_max_similarity: torch.Tensor
    frame_similarity: torch.Tensor | None
    feature_bytes: int
    counts: dict[Thresholds, TokenCount] = field(default_factory=dict)


def measure(
    features: torch.Tensor,
    grid: Grid,
    *,
    weighted_avg: bool = False,
    head_dim: int | None = None,
    thresholds: Thresholds | None = None,
) -> Similarities:
    """Pool a video's pyramid, and compare each node with its children and with those of the next frame.

    A coarse node's feature is the mean of its children's, or with ``weighted_avg`` the mean of all its cells, in the
    input's dtype. Similarities are float32.

    Args:
        features: ``[T, H, W, C]``, any float dtype.
        grid: the tables of H x W.
        weighted_avg: see above.
        head_dim: channels of an attention head; similarities are then averages over heads.
        thresholds: the only ones that will be asked about, if that is known; what they do not need may be left out.
    """
    feature_bytes = features.nbytes
    if features.dtype == torch.float64:
        features = features.float()
    temporal = len(features) > 1 and (thresholds is None or thresholds.temporal > 0)
    if grid.dense:
        child, frame = _measure_by_products(features.contiguous(), grid, weighted_avg, head_dim, temporal)
    else:
        spatial = thresholds.spatial if thresholds else None
        child, frame = _measure_by_gather(features, grid, weighted_avg, head_dim, temporal, spatial)
    return Similarities(*_over_cells(child, grid), frame, feature_bytes)


def leaf_level(running_max_similarity: torch.Tensor, spatial: float | torch.Tensor) -> torch.Tensor:
    """``[T, B, H*W]`` int64, level of the token over each cell at a spatial threshold (or at ``[B, 1]`` of them): the
    coarsest node that is similar enough to each of its children, or else the cell."""
    return (running_max_similarity < spatial).sum(1)


def _over_cells(child: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """``[T, n]`` similarities of the coarse nodes on the cells, and their running maxima; see :class:`Similarities`."""
    # A node that is not a number is similar to nothing; in a running maximum it would spread to all nodes below.
    min_child = child.nan_to_num_(nan=-torch.inf)[:, grid.over].unsqueeze(2)
    return min_child, min_child.cummax(1).values if grid.levels > 1 else min_child


def _pool(features: torch.Tensor, grid: Grid, weighted_avg: bool) -> list[torch.Tensor]:
    """The coarse levels ``[T, h, w, C]`` of the pyramid over ``[T, H, W, C]``, in its dtype, coarsest first."""
    finer = features.movedim(-1, 1)
    levels: list[torch.Tensor] = []
    for cells in reversed(grid.pool_weights):
        if cells is None or not weighted_avg:
            finer = _mean_of_children(finer)
        else:
            # The mean of (cells * child) over the mean of cells, in float32: in half precision sums could overflow.
            finer = (_mean_of_children(finer * cells) / _mean_of_children(cells)).to(finer.dtype)
        levels.insert(0, finer.movedim(1, -1))
    return levels


def _mean_of_children(grid: torch.Tensor) -> torch.Tensor:
    """``[..., h, w]`` -> ``[..., ceil(h/2), ceil(w/2)]``.

    A padding of one in front of an odd side, not counted in the mean, leaves its first row or column alone.
    """
    return F.avg_pool2d(grid, 2, padding=(grid.shape[-2] % 2, grid.shape[-1] % 2), count_include_pad=False)


def _coarse_pieces(features: torch.Tensor, grid: Grid, weighted_avg: bool) -> list[torch.Tensor]:
    """``[T, n', C]`` each; one after the other they are the coarse nodes of the frames."""
    levels = _pool(features, grid, weighted_avg)
    return [levels[level][:, rows].flatten(1, 2) for level, rows in grid.pieces]


# -- on CPUs ----------------------------------------------------------------------------------------------------------


def _measure_by_gather(
    features: torch.Tensor,
    grid: Grid,
    weighted_avg: bool,
    head_dim: int | None,
    temporal: bool,
    spatial: float | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``[T, n]`` similarity of each coarse node and its children, ``[T - 1, P]`` of pairs in consecutive frames.

    Reads the features once. With a ``spatial`` threshold only the pairs of tokens at it are compared.
    """
    (frames, _, _, channels), device = features.shape, features.device
    child = torch.empty(frames, len(grid.child), device=device)
    frame = torch.full((frames - 1, grid.pairs.shape[1]), -torch.inf, device=device) if temporal else None
    step = max(1, CPU_BLOCK // (grid.nodes * channels))
    # Row 0 holds the last frame of the block before.
    nodes = torch.empty(step + 1, grid.nodes, channels, device=device)
    norms = torch.empty(step + 1, grid.nodes, device=device)
    for block in blocks(frames, step):
        end = block.stop - block.start + 1
        nodes[0], norms[0] = nodes[-1], norms[-1]
        now = nodes[1:end]
        pieces = [features[block].flatten(1, 2), *_coarse_pieces(features[block], grid, weighted_avg)]
        for rows, piece in zip(now.split([piece.shape[1] for piece in pieces], 1), pieces, strict=True):
            rows.copy_(piece)
        if head_dim is None:
            torch.linalg.vector_norm(now, dim=-1, out=norms[1:end])
        else:
            heads = now.unflatten(-1, (-1, head_dim))
            heads /= torch.linalg.vector_norm(heads, dim=-1, keepdim=True).clamp_(min=EPS)
            norms[1:end] = (channels // head_dim) ** 0.5
        child[block] = _child_similarities(now, norms[1:end], grid)
        if frame is None:
            continue
        first = 1 if block.start else 2
        wanted = _pairs_at(child[max(0, block.start - 1) : block.stop], grid, spatial)
        frame[block.start - 2 + first : block.stop - 1] = _frame_similarities(
            nodes[first - 1 : end], norms[first - 1 : end], grid, wanted
        )
    return child, frame


def _child_similarities(nodes: torch.Tensor, norms: torch.Tensor, grid: Grid) -> torch.Tensor:
    """``[t, n]`` float32, the least similar child of each coarse node of ``[t, nodes, C]``."""
    start = torch.arange(len(nodes))[:, None, None] * grid.nodes
    parent = (start + grid.cells + grid.parent).expand(-1, -1, 4).flatten()
    child = (start + grid.child).flatten()
    norms = norms.clamp(min=EPS).flatten()
    rows = nodes.flatten(0, 1)
    cosine = _products_at(rows, rows, parent, child).div_(norms[parent] * norms[child])
    return cosine.view(len(nodes), -1, 4).amin(-1)


def _pairs_at(child: torch.Tensor, grid: Grid, spatial: float | None) -> torch.Tensor:
    """``[t - 1, P]`` bool: which pairs of ``t`` consecutive frames are pairs of tokens at a spatial threshold; all of
    them where none is given."""
    wanted = torch.full((len(child) - 1, grid.pairs.shape[1]), spatial is None, device=child.device)
    if spatial is not None:
        level = leaf_level(_over_cells(child.clone(), grid)[1], spatial).squeeze(1)
        wanted.scatter_(1, grid.pair[level[:-1], level[1:], grid.cell], True)
    return wanted


def _frame_similarities(nodes: torch.Tensor, norms: torch.Tensor, grid: Grid, wanted: torch.Tensor) -> torch.Tensor:
    """``[t - 1, P]`` float32, similarities of the wanted pairs in ``t`` consecutive frames ``[t, nodes, C]``; -inf of
    the others."""
    frame, pair = wanted.nonzero().unbind(1)
    earlier, later = frame * grid.nodes + grid.pairs[:, pair]
    norms = norms + EPS
    cosine = _products_at(nodes[:-1].flatten(0, 1), nodes[1:].flatten(0, 1), earlier, later)
    cosine /= norms[:-1].flatten()[earlier] * norms[1:].flatten()[later]
    return torch.full(wanted.shape, -torch.inf, device=nodes.device).masked_scatter_(wanted, cosine)


def _products_at(a: torch.Tensor, b: torch.Tensor, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
    """``[p]`` dot products of the rows ``a[row]`` and ``b[column]`` of float32 tables; ``row`` ascends.

    A sampled matrix product: other than ``(a[row] * b[column]).sum(-1)`` it copies no row.
    """
    _silence_sparse_beta_warning()
    start = torch.searchsorted(row, torch.arange(len(a) + 1, device=a.device))
    zeros = torch.zeros(len(row), device=a.device)
    pattern = torch.sparse_csr_tensor(start, column, zeros, (len(a), len(b)), check_invariants=False)
    return torch.sparse.sampled_addmm(pattern, a, b.mT, beta=0).values()


@cache
def _silence_sparse_beta_warning() -> None:
    """torch warns once a process that sparse CSR tensors are in beta; let it do so where nobody listens."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        index = torch.zeros(1, dtype=torch.long)
        torch.sparse_csr_tensor(torch.tensor([0, 1]), index, torch.zeros(1), (1, 1), check_invariants=False)


# -- on accelerators --------------------------------------------------------------------------------------------------


def _measure_by_products(
    features: torch.Tensor, grid: Grid, weighted_avg: bool, head_dim: int | None, temporal: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The same as :func:`_measure_by_gather` of all pairs, in few large operations and without waiting.

    Inputs in half precision are multiplied as they are where torch has such a product with float32 sums, and as
    float32 copies of a few frames elsewhere. (float32 inputs follow ``torch.set_float32_matmul_precision``; its default
    is exact.)
    """
    fine = features.flatten(1, 2)
    coarse = torch.cat([fine[:, :0], *_coarse_pieces(features, grid, weighted_avg)], 1)
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
    """Slices of ``length`` frames, so large that tables and float32 copies of ``nodes`` rows a frame stay small.

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
    """``[t, n, C]`` as it is multiplied: as it is, as float32, or with every head at unit length."""
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
