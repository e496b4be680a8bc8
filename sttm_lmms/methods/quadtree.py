"""The geometry of quadtrees that halve a grid until one side is 2: which node lies over which
cells, and which children it has.

Shared by STTM and the octree baseline; plain integers in numpy, nothing is measured here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

OddEdge = Literal["reference", "masked"]
"""What a border node with fewer than four children is compared with in their place."""


def pyramid_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Sizes ``(h, w)`` of the pyramid of a grid, coarsest first.

    Sides are halved, rounding up, until one of them is 2. A grid with a side of 1 or 2 is its own
    pyramid.
    """
    sizes = [(height, width)]
    while min(sizes[0]) > 2:
        h, w = sizes[0]
        sizes.insert(0, ((h + 1) // 2, (w + 1) // 2))
    return sizes


def nodes_over_cells(lengths: Sequence[int]) -> np.ndarray:
    """``[L, n]`` int64: per level, the node over each of the n cells along one side. ``lengths`` is
    coarsest first."""
    index = [np.arange(lengths[-1])]
    for length in reversed(lengths[1:]):
        # On an odd side the first node stays alone and the others pair up.
        index.insert(0, (index[0] + length % 2) // 2)
    return np.stack(index)


def node_extents(node: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each cell along one side, the first cell and the end (exclusive) of the node over it;
    both ``[L, n]``."""
    first, end = (np.stack([np.searchsorted(at, at, side) for at in node]) for side in ("left", "right"))
    return first, end


def extents_over_cells(row: np.ndarray, column: np.ndarray) -> list[np.ndarray]:
    """``[L, H, W]`` top, left, bottom and right of the node over each cell."""
    (top, bottom), (left, right) = node_extents(row), node_extents(column)
    shape = (len(row), row.shape[1], column.shape[1])
    sides = (top[:, :, None], left[:, None], bottom[:, :, None], right[:, None])
    return [np.broadcast_to(side, shape) for side in sides]


def count_children(size: tuple[int, int]) -> np.ndarray:
    """``[ceil(h/2), ceil(w/2)]``: how many nodes of a level of that size are under each node of the
    next coarser."""
    rows, columns = (np.bincount((np.arange(side) + side % 2) // 2) for side in size)
    return np.outer(rows, columns)


def compared_children(number: np.ndarray, odd_edge: OddEdge) -> np.ndarray:
    """``[parents, 4]``: what each parent is compared with, out of the finer level's numbers
    ``[h, w]``."""
    height, width = number.shape
    y, x = (2 * np.arange((side + side % 2) // 2)[:, None] - side % 2 + np.arange(2) for side in (height, width))
    inside = ((y >= 0)[:, None, :, None] & (x >= 0)[None, :, None, :]).reshape(-1, 4)
    # An odd side's first parent lacks its first row or column, so its last slot always holds a
    # child.
    found = number[y.clip(0)][:, :, x.clip(0)].transpose(0, 2, 1, 3).reshape(-1, 4)
    return np.where(inside, found, number[0, 0] if odd_edge == "reference" else found[:, 3:])
