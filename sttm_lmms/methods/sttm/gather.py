"""Similarities on CPUs, where bytes are what costs: the features are read once, a few frames at a
time.

Their nodes stay in the cache as float32 numbers, and only the products that count are formed.
"""

from __future__ import annotations

import warnings
from functools import cache

import torch

from sttm_lmms.methods.ops import EPS, blocks
from sttm_lmms.methods.sttm.grid import Grid
from sttm_lmms.methods.sttm.pyramid import coarse_nodes, leaf_level, over_cells

CPU_BLOCK = 1 << 22
"""Numbers in the nodes that are worked on at a time."""


def measure_by_gather(
    features: torch.Tensor,
    grid: Grid,
    weighted_avg: bool,
    head_dim: int | None,
    temporal: bool,
    spatial: float | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``[T, n]`` similarity of each coarse node and its least similar child, ``[T - 1, P]`` of
    pairs in consecutive frames.

    With a ``spatial`` threshold only the pairs of tokens at it are compared; the others are -inf.
    """
    (frames, _, _, channels), device = features.shape, features.device
    child = torch.empty(frames, len(grid.child), device=device)
    frame = torch.full((frames - 1, grid.pairs.shape[1]), -torch.inf, device=device) if temporal else None
    step = max(1, CPU_BLOCK // (grid.nodes * channels))
    # The nodes of a block of frames, behind those of the last frame before it.
    nodes = torch.empty(step + 1, grid.nodes, channels, device=device)
    norms = torch.empty(step + 1, grid.nodes, device=device)
    for block in blocks(frames, step):
        if block.start:
            nodes[0], norms[0] = nodes[-1], norms[-1]
        end = 1 + block.stop - block.start
        _fill(nodes[1:end], norms[1:end], features[block], grid, weighted_avg, head_dim)
        child[block] = _child_similarities(nodes[1:end], norms[1:end], grid)
        if frame is not None:
            first = 0 if block.start else 1
            pairs = slice(block.start - 1 + first, block.stop - 1)
            wanted = _pairs_at(child[pairs.start : block.stop], grid, spatial)
            frame[pairs] = _frame_similarities(nodes[first:end], norms[first:end], grid, wanted)
    return child, frame


def _fill(
    nodes: torch.Tensor,
    norms: torch.Tensor,
    features: torch.Tensor,
    grid: Grid,
    weighted_avg: bool,
    head_dim: int | None,
) -> None:
    """Write the nodes of some frames and their norms; with ``head_dim`` nodes whose heads have unit
    length, so that cosine similarities are averages over heads."""
    start = 0
    for piece in (features.flatten(1, 2), *coarse_nodes(features, grid, weighted_avg)):
        nodes[:, start : start + piece.shape[1]] = piece
        start += piece.shape[1]
    if head_dim is None:
        torch.linalg.vector_norm(nodes, dim=-1, out=norms)
    else:
        heads = nodes.unflatten(-1, (-1, head_dim))
        heads /= torch.linalg.vector_norm(heads, dim=-1, keepdim=True).clamp_(min=EPS)
        norms.fill_((nodes.shape[-1] // head_dim) ** 0.5)


def _child_similarities(nodes: torch.Tensor, norms: torch.Tensor, grid: Grid) -> torch.Tensor:
    """``[t, n]`` float32, the least similar child of each coarse node of ``[t, nodes, C]``."""
    start = torch.arange(len(nodes), device=nodes.device)[:, None, None] * grid.nodes
    parent = (start + grid.cells + grid.parent).expand(-1, -1, 4).flatten()
    child = (start + grid.child).flatten()
    norms = norms.clamp(min=EPS).flatten()
    rows = nodes.flatten(0, 1)
    cosine = _products_at(rows, rows, parent, child).div_(norms[parent] * norms[child])
    return cosine.view(len(nodes), -1, 4).amin(-1)


def _pairs_at(child: torch.Tensor, grid: Grid, spatial: float | None) -> torch.Tensor:
    """``[t - 1, P]`` bool: which pairs of ``t`` consecutive frames are pairs of tokens at a spatial
    threshold; all of them where none is given."""
    wanted = torch.full((len(child) - 1, grid.pairs.shape[1]), spatial is None, device=child.device)
    if spatial is not None:
        level = leaf_level(over_cells(child, grid)[1], spatial).squeeze(1)
        wanted.scatter_(1, grid.pair[level[:-1], level[1:], grid.cell], True)
    return wanted


def _frame_similarities(nodes: torch.Tensor, norms: torch.Tensor, grid: Grid, wanted: torch.Tensor) -> torch.Tensor:
    """``[t - 1, P]`` float32, similarities of the wanted pairs in ``t`` consecutive frames
    ``[t, nodes, C]``; -inf of the others."""
    frame, pair = wanted.nonzero().unbind(1)
    earlier, later = frame * grid.nodes + grid.pairs[:, pair]
    norms = norms + EPS
    cosine = _products_at(nodes[:-1].flatten(0, 1), nodes[1:].flatten(0, 1), earlier, later)
    cosine /= norms[:-1].flatten()[earlier] * norms[1:].flatten()[later]
    return torch.full(wanted.shape, -torch.inf, device=nodes.device).masked_scatter_(wanted, cosine)


def _products_at(a: torch.Tensor, b: torch.Tensor, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
    """``[p]`` dot products of the rows ``a[row]`` and ``b[column]`` of float32 tables; ``row``
    ascends.

    A sampled matrix product: other than ``(a[row] * b[column]).sum(-1)`` it copies no row.
    """
    _silence_sparse_beta_warning()
    start = torch.searchsorted(row, torch.arange(len(a) + 1, device=a.device))
    zeros = torch.zeros(len(row), device=a.device)
    pattern = torch.sparse_csr_tensor(start, column, zeros, (len(a), len(b)), check_invariants=False)
    return torch.sparse.sampled_addmm(pattern, a, b.mT, beta=0).values()


@cache
def _silence_sparse_beta_warning() -> None:
    """torch warns once a process that sparse CSR tensors are in beta; let it do so where nobody
    listens."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        index = torch.zeros(1, dtype=torch.long)
        torch.sparse_csr_tensor(torch.tensor([0, 1]), index, torch.zeros(1), (1, 1), check_invariants=False)
