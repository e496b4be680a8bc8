"""The quadtrees of one frame as index tables: a frame's H x W cells, and the coarser nodes above
them.

Two numberings. A *cell* is a token of the input, row-major. A *node* is a cell or a coarse node:
cells come first (``0 .. H*W - 1``), then the coarse nodes, row block by row block, coarsest level
first. Levels count from the root (0) to the cells (L - 1). No table grows with the number of
frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch

from sttm_lmms.methods.quadtree import (
    OddEdge,
    compared_children,
    count_children,
    extents_over_cells,
    nodes_over_cells,
    pyramid_sizes,
)

WHOLE_FRAME = 512
"""Frames of at most this many nodes are one row block; larger ones are cut, or their products would
grow as its square."""

LARGEST_BLOCK = 4096
"""Nodes of a row block from which on products are not formed: those of two frames would take 64
MiB."""


@dataclass(frozen=True)
class RowBlock:
    """A block of root rows that can be processed independently: its nodes overlap no node outside
    of it.

    Attributes:
        cells, coarse: the block's range of cells, and of coarse nodes (counted from the first
            coarse node).
        pairs: four ``(earlier, later)`` of ``[p]`` int64, counted within the block: the pairs of
            nodes in consecutive frames that are cell and cell, cell and coarse, coarse and cell,
            coarse and coarse.
    """

    cells: slice
    coarse: slice
    pairs: tuple[tuple[torch.Tensor, torch.Tensor], ...]


@dataclass(frozen=True)
class Grid:
    """Where the nodes of a frame's quadtree lie. L levels, coarsest first; n coarse nodes; P pairs
    of nodes.

    Attributes:
        sizes: the L level sizes ``(h, w)``; the last one is the grid.
        dense: whether similarities are measured as matrix products of all nodes of a row block, and
            nothing waits for the device before the end: on accelerators, where launches and waiting
            cost more than bytes.
        cell: ``[H*W]`` int64, 0, 1, 2, ...
        anchor: ``[L, H*W]`` int64, top-left cell of the node over each cell at each level.
        offset: ``[L, H*W]`` int64, how far that is before the cell.
        box: ``[L, H*W, 5]`` int64, ``(0, y0, x0, y1, x1)`` of that node, ends exclusive.
        share: ``[L, H*W]`` float32, the cell's weight in the mean of means that is the node's
            feature. A power of two: a node is the mean of 1, 2 or 4 children.
        children: ``[L - 1, H*W]`` int64, number of children of the node whose top-left cell it is;
            0 elsewhere.
        over: ``[L - 1, H*W]`` int64, the coarse node over each cell at each level, counted from the
            first coarse node.
        pool_weights: per coarse level, the number of cells under each node of the next finer level,
            ``[1, h, w]`` float32; None where all of them have the same number.
        pieces: ``(level, rows)`` whose nodes, one after the other, are the coarse nodes.
        parent, child: ``[n, 1]`` and ``[n, 4]`` int64, each coarse node (counted from the first
            one) and the nodes that it is compared with: its children, and for those that an odd
            side lacks the frame's top-left one, as in the published code, or with
            ``odd_edge="masked"`` a child that is there.
        pairs: ``[2, P]`` int64, the pairs of nodes in consecutive frames that may be compared: one
            contains the other. Earlier ones ascend, but with ``dense`` pairs come as in ``blocks``.
        pair: ``[L, L, H*W]`` int64, the pair of the nodes over a cell, for a level in the earlier
            frame and one in the later.
        blocks: see :class:`RowBlock`.
    """

    sizes: tuple[tuple[int, int], ...]
    dense: bool
    cell: torch.Tensor
    anchor: torch.Tensor
    offset: torch.Tensor
    box: torch.Tensor
    share: torch.Tensor
    children: torch.Tensor
    over: torch.Tensor
    pool_weights: tuple[torch.Tensor | None, ...]
    pieces: tuple[tuple[int, slice], ...]
    parent: torch.Tensor
    child: torch.Tensor
    pairs: torch.Tensor
    pair: torch.Tensor
    blocks: tuple[RowBlock, ...]

    @property
    def levels(self) -> int:
        return len(self.sizes)

    @property
    def cells(self) -> int:
        return self.cell.numel()

    @property
    def nodes(self) -> int:
        return self.cells + len(self.parent)


def is_accelerator(device: torch.device) -> bool:
    """Whether launching operations and waiting for their results cost more than moving bytes."""
    return device.type != "cpu"


@lru_cache(maxsize=32)
def grid_for(height: int, width: int, root_level: int, odd_edge: OddEdge, device: torch.device) -> Grid:
    """The tables of a ``height x width`` grid whose quadtrees start at ``root_level`` (at most the
    finest level).

    Callers share them: read-only.
    """
    sizes = tuple(pyramid_sizes(height, width)[root_level:]) or ((height, width),)
    row, column = (nodes_over_cells(side) for side in zip(*sizes, strict=True))
    levels, cells = len(sizes), height * width
    runs = _row_blocks(sizes, row)
    pieces = tuple(
        (level, slice(int(row[level][y0]), int(row[level][y1 - 1]) + 1))
        for y0, y1 in runs
        for level in range(levels - 1)
    )
    # Nodes of each level as [h, w]; those of the finest level are the cells.
    number = [*_number_coarse_nodes(sizes, pieces, first=cells), np.arange(cells).reshape(height, width)]
    node = np.stack([number[level][row[level]][:, column[level]] for level in range(levels)]).reshape(levels, cells)

    top, left, bottom, right = extents_over_cells(row, column)
    anchor = (top * width + left).reshape(levels, cells)
    box = np.stack((np.zeros_like(top), top, left, bottom, right), -1).reshape(levels, cells, 5)
    children, share, child = _child_tables(sizes, row, column, number, anchor, odd_edge)

    block_of = _block_of_nodes(runs, node, width)
    most = max(np.bincount(block_of)) if len(block_of) else 0
    dense = is_accelerator(device) and most <= LARGEST_BLOCK
    earlier, later, pair, part = _pairs(node, block_of if dense else None, cells)

    def put(array: np.ndarray) -> torch.Tensor:
        # Non-blocking: a copy from host memory that nobody changes needs no waiting for.
        return torch.from_numpy(np.ascontiguousarray(array)).to(device, non_blocking=True)

    def row_block(number: int, y0: int, y1: int) -> RowBlock:
        coarse = np.flatnonzero(block_of[cells:] == number)
        start, stop = (int(coarse[0]), int(coarse[-1]) + 1) if len(coarse) else (0, 0)
        first = np.array([y0 * width, cells + start])
        inside = []
        for kind in range(4):
            here = part == 4 * number + kind
            inside.append((put(earlier[here] - first[kind // 2]), put(later[here] - first[kind % 2])))
        return RowBlock(slice(y0 * width, y1 * width), slice(start, stop), tuple(inside))

    with torch.inference_mode(False):  # tables outlive the mode in which they are first asked for
        return Grid(
            sizes=sizes,
            dense=dense,
            cell=put(np.arange(cells)),
            anchor=put(anchor),
            offset=put(np.arange(cells) - anchor),
            box=put(box),
            share=put(share),
            children=put(children),
            over=put(node[:-1] - cells),
            pool_weights=tuple(None if weight is None else put(weight) for weight in _pool_weights(sizes, row, column)),
            pieces=pieces,
            parent=put(np.arange(len(child))[:, None]),
            child=put(child),
            pairs=put(np.stack((earlier, later))),
            pair=put(pair),
            blocks=tuple(row_block(i, *run) for i, run in enumerate(runs)) if dense else (),
        )


def _child_tables(
    sizes: tuple[tuple[int, int], ...],
    row: np.ndarray,
    column: np.ndarray,
    number: list[np.ndarray],
    anchor: np.ndarray,
    odd_edge: OddEdge,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``children``, ``share`` and ``child`` of :class:`Grid`."""
    levels, cells = anchor.shape
    children = np.zeros((levels - 1, cells), np.int64)
    share = np.ones((levels, *number[-1].shape), np.float32)
    child = np.empty((sum(h * w for h, w in sizes[:-1]), 4), np.int64)
    for level in reversed(range(levels - 1)):
        under = count_children(sizes[level + 1])[row[level]][:, column[level]]
        share[level] = share[level + 1] / under
        first = np.unique(anchor[level])
        children[level, first] = under.ravel()[first]
        child[number[level].ravel() - cells] = compared_children(number[level + 1], odd_edge)
    return children, share.reshape(levels, cells), child


def _block_of_nodes(runs: list[tuple[int, int]], node: np.ndarray, width: int) -> np.ndarray:
    """``[nodes]`` int64: the row block that each node lies in."""
    cells = node.shape[1]
    of_cells = np.repeat(np.arange(len(runs)), [width * (y1 - y0) for y0, y1 in runs])
    block = np.empty(int(node.max()) + 1, np.int64)
    block[:cells] = of_cells
    for level in node[:-1]:
        block[level] = of_cells
    return block


def _row_blocks(sizes: tuple[tuple[int, int], ...], row: np.ndarray) -> list[tuple[int, int]]:
    """Row blocks as rows of cells ``(y0, y1)``: the whole frame, or as many root rows as stay
    small."""
    nodes = sum(h * w for h, w in sizes)
    bounds = np.searchsorted(row[0], np.arange(sizes[0][0] + 1)).tolist()
    if nodes <= WHOLE_FRAME:
        return [(0, bounds[-1])]
    nodes_per_row = nodes / sizes[-1][0]
    runs: list[tuple[int, int]] = []
    for y0, y1 in pairwise(bounds):
        if runs and (y1 - runs[-1][0]) * nodes_per_row <= WHOLE_FRAME // 2:
            runs[-1] = (runs[-1][0], y1)
        else:
            runs.append((y0, y1))
    return runs


def _number_coarse_nodes(
    sizes: tuple[tuple[int, int], ...], pieces: tuple[tuple[int, slice], ...], first: int
) -> list[np.ndarray]:
    """``[h, w]`` number of each node of each coarse level, from ``first`` on."""
    number = [np.empty(size, np.int64) for size in sizes[:-1]]
    count = first
    for level, rows in pieces:
        block = number[level][rows]
        number[level][rows] = count + np.arange(block.size).reshape(block.shape)
        count += block.size
    return number


def _pool_weights(sizes: tuple[tuple[int, int], ...], row: np.ndarray, column: np.ndarray) -> list[np.ndarray | None]:
    """See :attr:`Grid.pool_weights`."""
    weights: list[np.ndarray | None] = []
    for level in range(len(sizes) - 1):
        cells = np.outer(np.bincount(row[level + 1]), np.bincount(column[level + 1]))
        weights.append(None if (cells == cells[0, 0]).all() else cells[None].astype(np.float32))
    return weights


def _pairs(
    node: np.ndarray, block_of: np.ndarray | None, cells: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Distinct pairs of nodes over one cell in two frames: ``earlier``, ``later``, ``pair`` of
    :class:`Grid`, and the part ``[P]`` (4 * row block + kind) that each belongs to.

    Ordered by part where row blocks are given, then by earlier and later node.
    """
    levels, nodes = len(node), int(node.max()) + 1
    earlier, later = (np.broadcast_to(side, (levels, *node.shape)) for side in (node[:, None], node[None]))
    block = np.zeros(nodes, np.int64) if block_of is None else block_of
    kind = 2 * (earlier >= cells) + (later >= cells)
    part = 4 * block[earlier] + kind if block_of is not None else np.zeros_like(earlier)
    keys, pair = np.unique((part * nodes + earlier) * nodes + later, return_inverse=True)
    part, both = np.divmod(keys, nodes * nodes)
    return *np.divmod(both, nodes), pair.reshape(earlier.shape), part
