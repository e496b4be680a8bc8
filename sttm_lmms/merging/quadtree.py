"""The spatial step: one quadtree per frame (arXiv 2507.07990, section 3.2).

All frames are worked on at once. A threshold turns into tokens without touching the features again, because every node
is described by one number, its *agreement*: the lowest cosine similarity between the node and its children. A node may
stop the descent if its agreement reaches the threshold, and each cell belongs to the coarsest node that stops.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from sttm_lmms.config import OddEdge
from sttm_lmms.merging.similarity import EPS, frame_blocks, head_dots, head_norms


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
        sizes: the L level sizes ``(h, w)``.
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
        """The layout of a ``height x width`` grid whose quadtrees start at ``root_level``."""
        sizes = tuple(pyramid_sizes(height, width)[root_level:]) or ((height, width),)
        rows = _node_of_cell([h for h, _ in sizes])
        columns = _node_of_cell([w for _, w in sizes])
        return cls(sizes, *(table.to(device) for table in (*_with_extent(rows), *_with_extent(columns))))

    def nodes(self, level: torch.Tensor, cell: torch.Tensor) -> torch.Tensor:
        """Index into the flattened ``[T*h*w]`` nodes of ``level`` of the node over each flat ``cell``; int64."""
        height, width = self.sizes[-1]
        t, y, x = cell // (height * width), cell // width % height, cell % width
        h, w = torch.tensor(self.sizes, device=cell.device)[level].unbind(-1)
        return (t * h + self.row[level, y]) * w + self.column[level, x]


def _node_of_cell(lengths: list[int]) -> torch.Tensor:
    """``[L, n]`` index of the node over each of the n cells of one side, per level; ``lengths`` coarsest first."""
    index = [torch.arange(lengths[-1])]
    for length in reversed(lengths[1:]):
        # On an odd side the first node stays alone and the others pair up.
        index.insert(0, (index[0] + length % 2) // 2)
    return torch.stack(index)


def _with_extent(node: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return node, torch.searchsorted(node, node), torch.searchsorted(node, node, right=True)


@dataclass(frozen=True)
class Quadtrees:
    """The pyramid of one video and what its similarities say.

    Attributes:
        layout: the geometry.
        levels: L tensors ``[T, h, w, C]`` in the input's dtype, coarsest first; the last one is the input itself.
        norms: L tensors ``[T, h, w, heads]`` float32.
        agreement: ``[L - 1, T, H, W]`` float32, for every cell the agreement of the node over it (finest level left
            out: its nodes have no children).
    """

    layout: Layout
    levels: tuple[torch.Tensor, ...]
    norms: tuple[torch.Tensor, ...]
    agreement: torch.Tensor

    def partition(self, spatial_threshold: float) -> Partition:
        """The tokens of the spatial step at a threshold."""
        layout = self.layout
        finest = len(self.levels) - 1
        level = torch.full(self.levels[-1].shape[:3], finest, device=self.agreement.device)
        for coarser in reversed(range(finest)):
            level.masked_fill_(self.agreement[coarser] >= spatial_threshold, coarser)
        t, h, w = (torch.arange(side, device=level.device) for side in level.shape)
        y, x = layout.top[level, h[:, None]], layout.left[level, w]
        return Partition(level, (t[:, None, None] * len(h) + y) * len(w) + x)


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


def build_quadtrees(
    features: torch.Tensor,
    root_level: int,
    *,
    weighted_avg: bool = False,
    head_dim: int | None = None,
    odd_edge: OddEdge = "reference",
) -> Quadtrees:
    """Pool the pyramid of ``features`` ``[T, H, W, C]`` and measure the agreement of every node.

    A node's feature is the mean of its children's, or with ``weighted_avg`` the mean of all its cells. Pooling keeps
    the input's dtype, similarities are float32.
    """
    _, height, width, _ = features.shape
    layout = Layout.of(height, width, root_level, features.device)
    levels = [features]
    norms = [head_norms(features, head_dim)]
    agreement: list[torch.Tensor] = []
    cells = torch.ones(height, width, dtype=torch.float32, device=features.device) if weighted_avg else None
    for _ in layout.sizes[1:]:
        children = levels[0]
        parents, cells = _pool(children, cells)
        parent_norms = head_norms(parents, head_dim)
        agreement.insert(0, _agreement(children, parents, norms[0], parent_norms, odd_edge))
        levels.insert(0, parents)
        norms.insert(0, parent_norms)
    upsampled = [low[:, layout.row[i]][:, :, layout.column[i]] for i, low in enumerate(agreement)]
    if not upsampled:
        per_cell = torch.empty(0, *features.shape[:3], dtype=torch.float32, device=features.device)
    else:
        per_cell = torch.stack(upsampled)
    return Quadtrees(layout, tuple(levels), tuple(norms), per_cell)


def _pool(children: torch.Tensor, cells: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The next coarser level of ``[T, h, w, C]``; with ``cells`` ``[h, w]`` every child weighs as many cells.

    A padding of one in front of an odd side, not counted in the mean, leaves its first row or column alone.
    """
    _, h, w, _ = children.shape

    def average(grid: torch.Tensor) -> torch.Tensor:
        pooled = F.avg_pool2d(grid.movedim(-1, -3), 2, padding=(h % 2, w % 2), count_include_pad=False)
        return pooled.movedim(-3, -1)

    if cells is None:
        return average(children).contiguous(), None
    mean_cells = average(cells[..., None])
    parents = children.new_empty(children.shape[0], *mean_cells.shape[:2], children.shape[-1])
    for block in frame_blocks(children):
        # The mean of (cells * child) over the mean of cells; sums in half precision could overflow.
        parents[block] = average(children[block].float() * cells[..., None]).div_(mean_cells).to(parents.dtype)
    missing = F.avg_pool2d(torch.ones_like(cells)[None], 2, padding=(h % 2, w % 2))[0]
    return parents, mean_cells[..., 0] * missing * 4


def _agreement(
    children: torch.Tensor,
    parents: torch.Tensor,
    child_norms: torch.Tensor,
    parent_norms: torch.Tensor,
    odd_edge: OddEdge,
) -> torch.Tensor:
    """``[T, h, w]`` float32: the lowest cosine similarity between each parent and its children."""
    frames, h, w, _ = children.shape
    heads = child_norms.shape[-1]
    rows = (torch.arange(h, device=children.device) + h % 2) // 2
    columns = (torch.arange(w, device=children.device) + w % 2) // 2
    parent_of = (rows[:, None] * parents.shape[2] + columns).flatten()
    first = torch.zeros_like(parent_of[: parents.shape[1] * parents.shape[2]])
    lowest = []
    child_flat, parent_flat = children.flatten(1, 2), parents.flatten(1, 2)
    child_norms, parent_norms = child_norms.flatten(1, 2).clamp(min=EPS), parent_norms.flatten(1, 2).clamp(min=EPS)
    for block in frame_blocks(children):
        child, parent = child_flat[block], parent_flat[block]
        dots = head_dots(child, parent.index_select(1, parent_of), heads)
        scale = child_norms[block] * parent_norms[block].index_select(1, parent_of)
        cosine = (dots / scale).mean(-1).unflatten(1, (h, w))
        # Max-pooling ignores its padding, as the mean above does.
        low = -F.max_pool2d(-cosine, 2, padding=(h % 2, w % 2))
        if odd_edge == "reference" and (h % 2 or w % 2):
            low = _with_corner(low, child, parent, child_norms[block], parent_norms[block], h % 2, w % 2)
        lowest.append(low)
    return torch.cat(lowest)


def _with_corner(
    low: torch.Tensor,
    child: torch.Tensor,
    parent: torch.Tensor,
    child_norms: torch.Tensor,
    parent_norms: torch.Tensor,
    odd_height: int,
    odd_width: int,
) -> torch.Tensor:
    """Lower the agreement of border parents to their similarity with the frame's top-left child.

    The published code fills the missing child slots of an odd side with that child.
    """
    border = torch.zeros_like(low[0], dtype=torch.bool)
    border[:odd_height] = True
    border[:, :odd_width] = True
    index = border.flatten().nonzero().squeeze(1)
    corner = child[:, :1].expand(-1, len(index), -1)
    dots = head_dots(parent.index_select(1, index), corner, child_norms.shape[-1])
    cosine = (dots / (parent_norms.index_select(1, index) * child_norms[:, :1])).mean(-1)
    flat = low.flatten(1)
    flat[:, index] = torch.minimum(flat[:, index], cosine)
    return flat.view_as(low)
