"""The geometry of a frame's quadtrees as index tables, built once per grid and kept on the device.

Nodes of one frame are numbered in two ways. ``slot``: the cells in row-major order, then the coarse nodes band by band
(a band is a run of rows of roots; no node overlaps two bands), coarsest level first. ``coarse``: coarse nodes alone,
``slot - H*W``. None of the tables grows with the number of frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from sttm_lmms.methods.sttm.quadtree import OddEdge, nodes_over_cells, pyramid_sizes

WHOLE_FRAME = 512
"""Frames of at most this many nodes are one band; larger ones are cut, or their products would grow as its square."""

LARGEST_BAND = 4096
"""Nodes in a band beyond which the dense path gives up: the products of two frames would take 64 MiB a table."""


@dataclass(frozen=True)
class Band:
    """A run of rows of roots: its nodes overlap no node outside of it.

    Attributes:
        cells, coarse: the band's range of cells and of coarse nodes.
        cell: ``[1, cells]`` int64, 0, 1, ...
        over: ``[L - 1, cells]`` int64, for each cell the coarse node over it at each level, counted within the band.
        earlier, later: ``[(L - 1)**2, cells]`` int64, ``over`` for each pair of coarse levels.
    """

    cells: slice
    coarse: slice
    cell: torch.Tensor
    over: torch.Tensor
    earlier: torch.Tensor
    later: torch.Tensor

    @property
    def nodes(self) -> int:
        return self.cells.stop - self.cells.start + self.coarse.stop - self.coarse.start


@dataclass(frozen=True)
class Tables:
    """Static tables of a grid ``H x W``; L levels, coarsest first, n coarse nodes.

    Attributes:
        sizes: the L level sizes ``(h, w)``.
        cells_under: per coarse level, what :func:`torch.mul` weighs the next finer level's nodes with before pooling a
            mean over cells, ``[1, h, w]`` float32; None where all of them have the same number of cells.
        pieces: ``(level, rows)`` whose nodes make up the coarse numbering.
        bands: see :class:`Band`.
        anchor: ``[L, H*W]`` int64, top-left cell of the node over each cell.
        back: ``[L, H*W]`` int64, how far that is before the cell.
        column: ``[H*W]`` int64, 0, 1, 2, ...
        share: ``[L, H*W]`` float32, the cell's weight in the pooled feature of that node. Always a power of two: a
            node is the mean of 1, 2 or 4 children.
        box: ``[L, H*W, 5]`` int64 ``(0, y0, x0, y1, x1)`` of that node.
        child, parent: ``[L - 1, 1, H*W, 4]`` slots of its children and ``[L - 1, 1, H*W, 1]`` its coarse number. A
            missing child is the frame's top-left one, or with ``odd_edge="masked"`` a repeated one.
        family: ``[2, L - 1, 1, H*W, 4]``, the two as slots.
        pair: ``[2, L * L, H*W]`` slots of the nodes over a cell in a frame and in the next for each pair of levels.
        pair_frame: 0 and 1, as large as ``pair``.
        pair_row: ``[L, L]`` int64, for a level in the earlier frame and one in the later the row of those two.
    """

    sizes: tuple[tuple[int, int], ...]
    cells_under: tuple[torch.Tensor | None, ...]
    pieces: tuple[tuple[int, slice], ...]
    bands: tuple[Band, ...]
    anchor: torch.Tensor
    back: torch.Tensor
    column: torch.Tensor
    share: torch.Tensor
    box: torch.Tensor
    child: torch.Tensor
    parent: torch.Tensor
    family: torch.Tensor
    pair: torch.Tensor
    pair_frame: torch.Tensor
    pair_row: torch.Tensor

    @property
    def levels(self) -> int:
        return len(self.sizes)

    @property
    def cells(self) -> int:
        height, width = self.sizes[-1]
        return height * width

    @property
    def coarse(self) -> int:
        return sum(h * w for h, w in self.sizes[:-1])

    @property
    def fits(self) -> bool:
        """Whether the products of two frames' nodes are small enough to be tables."""
        return max(band.nodes for band in self.bands) <= LARGEST_BAND


@lru_cache(maxsize=32)
def tables_for(height: int, width: int, root_level: int, odd_edge: OddEdge, device: torch.device) -> Tables:
    """The tables of a grid whose quadtrees start at ``root_level``, on a device. Read-only: callers share them."""
    sizes = tuple(pyramid_sizes(height, width)[root_level:]) or ((height, width),)
    row, column = (nodes_over_cells(list(side)) for side in zip(*sizes, strict=True))
    levels, cells = len(sizes), height * width
    runs = _runs_of_roots(sizes, row)
    pieces = [
        (level, slice(int(row[level][y0]), int(row[level][y1 - 1]) + 1))
        for y0, y1 in runs
        for level in range(levels - 1)
    ]
    number = [np.empty(size, np.int64) for size in sizes[:-1]]
    count = 0
    for level, rows in pieces:
        block = number[level][rows]
        number[level][rows] = count + np.arange(block.size).reshape(block.shape)
        count += block.size

    top, left, bottom, right = _extent(row, column)
    over_cell = [number[level][row[level]][:, column[level]].ravel() for level in range(levels - 1)]
    slot = np.stack([*(nodes + cells for nodes in over_cell), np.arange(cells)])
    share = np.ones((levels, height, width), np.float32)
    under: list[np.ndarray | None] = []
    for level in reversed(range(levels - 1)):
        family = _families(sizes[level + 1])
        share[level] = share[level + 1] / family[row[level]][:, column[level]]
        weight = np.outer(np.bincount(row[level + 1]), np.bincount(column[level + 1]))
        under.insert(0, None if (weight == weight[0, 0]).all() else weight[None].astype(np.float32))

    child, parent = np.empty((levels - 1, 1, cells, 4), np.int64), np.empty((levels - 1, 1, cells, 1), np.int64)
    for level in range(levels - 1):
        finer = number[level + 1] + cells if level < levels - 2 else np.arange(cells).reshape(height, width)
        over = (row[level][:, None] * sizes[level][1] + column[level]).ravel()
        child[level] = _children(finer, odd_edge)[over]
        parent[level, 0, :, 0] = over_cell[level]

    # Pairs of levels in the order in which products come: cell x cell, cell x coarse, coarse x cell, coarse x coarse.
    fine, coarser = levels - 1, range(levels - 1)
    pairs = [(fine, fine), *((fine, i) for i in coarser), *((i, fine) for i in coarser)]
    pairs += [(i, j) for i in coarser for j in coarser]
    place = np.empty(levels**2, np.int64)
    place[[a * levels + b for a, b in pairs]] = np.arange(levels**2)
    temporal = np.stack([slot[list(side)] for side in zip(*pairs, strict=True)])

    def put(array: Any) -> torch.Tensor:
        # Not waited for, where torch would wait otherwise.
        return torch.from_numpy(np.ascontiguousarray(array)).to(device, non_blocking=True)

    def band(y0: int, y1: int) -> Band:
        inside = slice(y0 * width, y1 * width)
        nodes = np.stack([nodes[inside] for nodes in over_cell]) if over_cell else np.empty((0, cells), np.int64)
        start, stop = (int(nodes.min()), int(nodes.max()) + 1) if nodes.size else (0, 0)
        nodes -= start
        earlier, later = nodes.repeat(levels - 1, 0), np.tile(nodes, (levels - 1, 1))
        cell = np.arange(inside.stop - inside.start)[None]
        return Band(inside, slice(start, stop), *map(put, (cell, nodes, earlier, later)))

    anchor = (top * width + left).reshape(levels, cells)
    with torch.inference_mode(False):
        return Tables(
            sizes,
            tuple(None if weight is None else put(weight) for weight in under),
            tuple(pieces),
            tuple(band(*run) for run in runs),
            put(anchor),
            put(np.arange(cells) - anchor),
            put(np.arange(cells)),
            put(share.reshape(levels, cells)),
            put(np.stack((np.zeros_like(top), top, left, bottom, right), -1).reshape(levels, cells, 5)),
            put(child),
            put(parent),
            put(np.stack(np.broadcast_arrays(child, parent + cells))),
            put(temporal),
            put(np.broadcast_to([[[0]], [[1]]], temporal.shape).copy()),
            put(place.reshape(levels, levels)),
        )


def _runs_of_roots(sizes: tuple[tuple[int, int], ...], row: np.ndarray) -> list[tuple[int, int]]:
    """Bands as rows of cells ``(y0, y1)``: the whole frame, or as many rows of roots as stay small."""
    nodes = sum(h * w for h, w in sizes)
    bounds = np.searchsorted(row[0], np.arange(sizes[0][0] + 1)).tolist()
    if nodes <= WHOLE_FRAME:
        return [(0, bounds[-1])]
    per_row = nodes / sizes[-1][0]
    runs: list[tuple[int, int]] = []
    for y0, y1 in pairwise(bounds):
        if runs and (y1 - runs[-1][0]) * per_row <= WHOLE_FRAME // 2:
            runs[-1] = (runs[-1][0], y1)
        else:
            runs.append((y0, y1))
    return runs


def _extent(row: np.ndarray, column: np.ndarray) -> list[np.ndarray]:
    """``[L, H, W]`` top, left, bottom and right of the node over each cell."""
    shape = (len(row), row.shape[1], column.shape[1])
    top, bottom = (np.stack([np.searchsorted(r, r, side) for r in row])[:, :, None] for side in ("left", "right"))
    left, right = (np.stack([np.searchsorted(c, c, side) for c in column])[:, None] for side in ("left", "right"))
    return [np.broadcast_to(side, shape) for side in (top, left, bottom, right)]


def _families(size: tuple[int, int]) -> np.ndarray:
    """``[ceil(h/2), ceil(w/2)]`` number of children of each parent of a level of that size."""
    rows, columns = (np.bincount((np.arange(side) + side % 2) // 2) for side in size)
    return np.outer(rows, columns)


def _children(number: np.ndarray, odd_edge: OddEdge) -> np.ndarray:
    """``[parents, 4]`` numbers of the children ``[h, w]`` of each parent."""
    height, width = number.shape
    y, x = (2 * np.arange((side + side % 2) // 2)[:, None] - side % 2 + np.arange(2) for side in (height, width))
    inside = ((y >= 0)[:, None, :, None] & (x >= 0)[None, :, None, :]).reshape(-1, 4)
    # An odd side's first parent lacks its first row or column, so its last slot always holds a child.
    found = number[y.clip(0)][:, :, x.clip(0)].transpose(0, 2, 1, 3).reshape(-1, 4)
    return np.where(inside, found, number[0, 0] if odd_edge == "reference" else found[:, 3:])
