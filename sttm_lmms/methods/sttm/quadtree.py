"""The spatial step: one quadtree per frame (arXiv 2507.07990, section 3.2).

All frames are worked on at once. A threshold turns into tokens without touching the features again, because every node
is described by one number, the lowest cosine similarity between it and its children. A node may stop the descent if
that number reaches the threshold, and each cell belongs to the coarsest node that stops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F

from sttm_lmms.methods.sttm.similarity import EPS, block_rows, blocks, row_dots, row_norms

if TYPE_CHECKING:
    from sttm_lmms.methods.sttm.method import STTMConfig


OddEdge = Literal["reference", "masked"]


def pyramid_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Sizes ``(h, w)`` of the pyramid of a grid, coarsest first.

    Sides are halved, rounding up, until one of them is 2. A grid with a side of 1 or 2 is its own pyramid.
    """
    sizes = [(height, width)]
    while min(sizes[0]) > 2:
        h, w = sizes[0]
        sizes.insert(0, ((h + 1) // 2, (w + 1) // 2))
    return sizes


@dataclass(frozen=True)
class Layout:
    """Where the nodes of each level lie on the grid. L levels, coarsest first; a node is a (row, column) of its level.

    Attributes:
        sizes: the L level sizes ``(h, w)``; the last one is the grid.
        row, top, bottom: ``[L, H]`` int64, for each row of cells: the row of nodes over it, and the first cell row and
            the end (exclusive) of that row of nodes.
        column, left, right: ``[L, W]`` int64, the same for columns.
    """

    sizes: tuple[tuple[int, int], ...]
    row: torch.Tensor
    top: torch.Tensor
    bottom: torch.Tensor
    column: torch.Tensor
    left: torch.Tensor
    right: torch.Tensor

    @classmethod
    def of(cls, height: int, width: int, root_level: int, device: torch.device) -> Layout:
        """The layout of a ``height x width`` grid whose quadtrees start at ``root_level``, at most the finest."""
        sizes = tuple(pyramid_sizes(height, width)[root_level:]) or ((height, width),)
        rows, columns = (torch.from_numpy(nodes_over_cells(side)) for side in zip(*sizes, strict=True))
        return cls(sizes, *(table.to(device) for table in (*with_extent(rows), *with_extent(columns))))

    def coordinates(self, cell: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Frame, row and column of flat cell indices into ``[T, H, W]``."""
        height, width = self.sizes[-1]
        return cell // (height * width), cell // width % height, cell % width

    def node(self, level: int, cell: torch.Tensor) -> torch.Tensor:
        """Index into the flattened ``[T, h, w]`` nodes of ``level`` of the node over each flat ``cell``."""
        t, y, x = self.coordinates(cell)
        h, w = self.sizes[level]
        return (t * h + self.row[level, y]) * w + self.column[level, x]

    def anchors(self) -> torch.Tensor:
        """``[L, H*W]`` int64: top-left cell of the node over each cell, at each level."""
        return (self.top[:, :, None] * self.sizes[-1][1] + self.left[:, None]).flatten(1)

    def upsample(self, level: int, values: torch.Tensor) -> torch.Tensor:
        """``[T, h, w]`` values of the nodes of ``level``, on the cells: ``[T, H, W]``."""
        return values[:, self.row[level]][:, :, self.column[level]]


def nodes_over_cells(lengths: Sequence[int]) -> np.ndarray:
    """``[L, n]``: per level, the node over each of the n cells along one side. ``lengths`` is coarsest first."""
    index = [np.arange(lengths[-1])]
    for length in reversed(lengths[1:]):
        # On an odd side the first node stays alone and the others pair up.
        index.insert(0, (index[0] + length % 2) // 2)
    return np.stack(index)


def with_extent(node: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For each cell along one side: the node over it, and the first cell and the end (exclusive) of that node."""
    return node, torch.searchsorted(node, node), torch.searchsorted(node, node, right=True)


@dataclass(frozen=True)
class Partition:
    """Tokens as a labelling of the cells. A token is known by its anchor: the flat index of its top-left cell.

    Attributes:
        level: ``[T, H, W]`` int64, pyramid level of the token that owns the cell.
        anchor: ``[T, H, W]`` int64, anchor of that token.
    """

    level: torch.Tensor
    anchor: torch.Tensor

    @property
    def is_anchor(self) -> torch.Tensor:
        """``[T, H, W]`` bool, true on the top-left cell of each token."""
        return self.anchor == torch.arange(self.anchor.numel(), device=self.anchor.device).view_as(self.anchor)


def partition_at(layout: Layout, min_child_similarity: torch.Tensor, spatial_threshold: float) -> Partition:
    """The tokens of the spatial step at a threshold. ``min_child_similarity`` as in :class:`Quadtrees`."""
    coarser, *shape = min_child_similarity.shape
    level = torch.full(shape, coarser, device=min_child_similarity.device)
    for i in reversed(range(coarser)):
        level.masked_fill_(min_child_similarity[i] >= spatial_threshold, i)
    t, h, w = (torch.arange(side, device=min_child_similarity.device) for side in shape)
    top, left = layout.top[level, h[:, None]], layout.left[level, w]
    return Partition(level, (t[:, None, None] * len(h) + top) * len(w) + left)


@dataclass(frozen=True)
class Quadtrees:
    """The pyramid of one video and what its similarities say.

    Attributes:
        layout: the geometry.
        levels: L tensors ``[T, h, w, C]`` in the input's dtype, coarsest first; the last one is the input itself.
        norms: L tensors ``[T*h*w, heads]`` float32.
        min_child_similarity: ``[L - 1, T, H, W]`` float32, for every cell the lowest cosine similarity between the
            node over it and its children (the finest level is left out: its nodes have none).
    """

    layout: Layout
    levels: tuple[torch.Tensor, ...]
    norms: tuple[torch.Tensor, ...]
    min_child_similarity: torch.Tensor

    def rows(self, level: int) -> torch.Tensor:
        """The features of a level as ``[T*h*w, C]``."""
        return self.levels[level].flatten(0, 2)


def check_features(features: torch.Tensor, config: STTMConfig, head_dim: int | None) -> None:
    """Raise what ``merge_video_tokens`` raises."""
    if features.dim() != 4 or 0 in features.shape:
        raise ValueError(f"features have shape {tuple(features.shape)}; they must be a non-empty [T, H, W, C]")
    if not features.is_floating_point():
        raise TypeError(f"features are {features.dtype}; they must be floating point")
    if config.per_head and (head_dim is None or head_dim < 1 or features.shape[-1] % head_dim):
        raise ValueError(f"per_head=True needs a head_dim that divides C={features.shape[-1]}, not {head_dim}")


def build_quadtrees(features: torch.Tensor, config: STTMConfig, head_dim: int | None = None) -> Quadtrees:
    """Pool the pyramid of ``features`` ``[T, H, W, C]`` and compare every node with its children.

    A node's feature is the mean of its children's, or with ``weighted_avg`` the mean of all its cells. Pooling keeps
    the input's dtype, similarities are float32. Arguments and errors as in ``merge_video_tokens``.
    """
    check_features(features, config, head_dim)
    head_dim = head_dim if config.per_head else None
    frames, height, width, _ = features.shape
    layout = Layout.of(height, width, config.root_level, features.device)
    finest = len(layout.sizes) - 1
    levels = [features.contiguous()]
    norms = [row_norms(levels[0].flatten(0, 2), head_dim)]
    similarity = torch.empty(finest, frames, height, width, dtype=torch.float32, device=features.device)
    for i in reversed(range(finest)):
        levels.insert(0, _pool(levels[0], _cells(layout, i + 1) if config.weighted_avg else None))
        norms.insert(0, row_norms(levels[0].flatten(0, 2), head_dim))
        lowest = _min_child_similarity(levels[1], levels[0], norms[1], norms[0], config.odd_edge)
        similarity[i] = layout.upsample(i, lowest)
    return Quadtrees(layout, tuple(levels), tuple(norms), similarity)


def _cells(layout: Layout, level: int) -> torch.Tensor:
    """``[h, w]`` float32: cells under each node of a level."""
    rows, columns = torch.bincount(layout.row[level]), torch.bincount(layout.column[level])
    return (rows[:, None] * columns).float()


def _average(grid: torch.Tensor) -> torch.Tensor:
    """Mean over children, ``[..., h, w, C]`` -> ``[..., ceil(h/2), ceil(w/2), C]``.

    A padding of one in front of an odd side, not counted in the mean, leaves its first row or column alone.
    """
    odd = (grid.shape[-3] % 2, grid.shape[-2] % 2)
    return F.avg_pool2d(grid.movedim(-1, -3), 2, padding=odd, count_include_pad=False).movedim(-3, -1).contiguous()


def _pool(children: torch.Tensor, cells: torch.Tensor | None) -> torch.Tensor:
    """The next coarser level of ``[T, h, w, C]``; with ``cells`` ``[h, w]`` a child weighs as many cells."""
    if cells is None or bool((cells == cells[0, 0]).all()):
        return _average(children)
    weight = cells[..., None]
    # The mean of (cells * child) over the mean of cells, in float32: sums in half precision lose digits or overflow.
    step = max(1, block_rows(children) // cells.numel())
    parts = [_average(children[block].float() * weight) / _average(weight) for block in blocks(len(children), step)]
    return torch.cat([part.to(children.dtype) for part in parts])


def _min_child_similarity(
    children: torch.Tensor,
    parents: torch.Tensor,
    child_norms: torch.Tensor,
    parent_norms: torch.Tensor,
    odd_edge: OddEdge,
) -> torch.Tensor:
    """``[T, h, w]`` float32: the lowest cosine similarity between each parent and its children."""
    (frames, child_h, child_w, _), (_, h, w, _) = children.shape, parents.shape
    odd = (child_h % 2, child_w % 2)
    child_norms, parent_norms = child_norms.clamp(min=EPS), parent_norms.clamp(min=EPS)
    child_rows, parent_rows = children.flatten(0, 2), parents.flatten(0, 2)
    heads = child_norms.shape[-1]
    t, y, x = (torch.arange(n, device=children.device) for n in (frames, child_h, child_w))
    t = t[:, None, None]

    parent = ((t * h + (y[:, None] + odd[0]) // 2) * w + (x + odd[1]) // 2).flatten()
    dots = row_dots(child_rows, parent_rows, None, parent, heads)
    cosine = (dots / (child_norms * parent_norms[parent])).mean(-1).view(frames, child_h, child_w)
    # Max-pooling ignores its padding as the pooling of features does.
    lowest = -F.max_pool2d(-cosine, 2, padding=odd)
    if odd_edge == "masked" or not any(odd):
        return lowest

    # The published code fills the missing child slots on an odd side with the frame's top-left child.
    border = ((y[:h, None] < odd[0]) | (x[:w] < odd[1])).expand(frames, h, w)
    parent = border.flatten().nonzero().squeeze(1)
    corner = parent // (h * w) * (child_h * child_w)
    dots = row_dots(parent_rows, child_rows, parent, corner, heads)
    cosine = (dots / (parent_norms[parent] * child_norms[corner])).mean(-1)
    lowest[border] = torch.minimum(lowest[border], cosine)
    return lowest
