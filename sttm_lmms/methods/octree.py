"""Octree reduction: STTM's quadtree with time as its third axis (the joint baseline of arXiv
2507.07990).

W frames of an H x W video, H = W, form a cube, each with one octree; every frame that is left over has a quadtree::

    build a pyramid: a coarser level averages 2x2x2 cells of the finer one, until a side is 2;
        odd sides as in STTM
    nodes = all nodes of the root level
    while there are nodes:
        a node that is similar enough to each of its children (cosine >= threshold) becomes a token
        the other nodes are replaced by their children; at the finest level each becomes a token
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
import torch.nn.functional as F

from sttm_lmms.config import check_choice, check_integer, check_number
from sttm_lmms.methods import register_method
from sttm_lmms.methods.base import BudgetWarning, LayerMethod, Probe, State, from_published, max_tokens
from sttm_lmms.methods.ops import EPS, row_dots, row_norms
from sttm_lmms.methods.quadtree import OddEdge, node_extents, nodes_over_cells, pyramid_sizes
from sttm_lmms.types import Kept, Tokens

LOWEST, HIGHEST = -1.0, 2.0
"""Thresholds at which nothing and everything is split."""


@register_method("octree")
@dataclass(frozen=True, kw_only=True)
class OctreeConfig(LayerMethod):
    """Settings of octree reduction. Give either ``threshold`` or ``budget``.

    The published code takes square frames of at least 2 x 2; here the cube of any frame is as deep
    as its shorter side.

    Attributes:
        threshold: a node stays whole if its cosine similarity to each child is at least this. In
            [-1, 2].
        root_level: level (0 = coarsest) at which the trees start; one beyond the finest means the
            finest.
        odd_edge: what a node with missing children on an odd side does: ``"reference"`` compares it
            to the first child of its cube (or frame) as well, as the published code does;
            ``"masked"`` ignores missing children.
        budget: kept visual tokens / all visual tokens, in (0, 1]; the threshold is searched for
            each video. A budget below the share of the root nodes warns and gives these.

    Raises:
        ValueError: a value is out of range, or not exactly one of threshold and budget is given.
    """

    threshold: float | None = None
    root_level: int = 1
    odd_edge: OddEdge = "reference"
    budget: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.threshold is None) == (self.budget is None):
            raise ValueError("give either threshold or budget (share kept)")
        if self.budget is not None:
            check_number("budget", self.budget, 0.0, 1.0, low_open=True)
        else:
            check_number("threshold", self.threshold, LOWEST, HIGHEST)
        check_integer("root_level", self.root_level, 0)
        check_choice("odd_edge", self.odd_edge, get_args(OddEdge))

    @classmethod
    def published(cls, **settings: Any) -> OctreeConfig:
        """From ``sa_tree_thresh``, ``sa_tree_root_level``, ``sa_start_layer_idx``."""
        names = {"sa_tree_thresh": "threshold", "sa_tree_root_level": "root_level", "sa_start_layer_idx": "start_layer"}
        names |= {"thr": "threshold", "root": "root_level"}
        return cls(**from_published(settings, names), decode_positions="reference")

    def reduce(self, tokens: Tokens, layer: int, probe: Probe, state: State) -> Kept:
        """Replace similar cells by the mean of their node; order is that of each node's first
        cell."""
        grid = tokens.as_grid()
        depth = min(grid.shape[1:3])
        cut = len(grid) - len(grid) % depth
        parts = [(grid[:cut].unflatten(0, (-1, depth)), 0), (grid[cut:].unsqueeze(1), cut * grid[0, ..., 0].numel())]
        trees = [(Octrees.of(part, self.root_level, self.odd_edge), first) for part, first in parts if len(part)]
        threshold = self.threshold
        if threshold is None:
            assert self.budget is not None
            threshold = search_threshold([tree for tree, _ in trees], self.budget, len(tokens))
        kept = [tree.tokens_at(threshold) for tree, _ in trees]
        index = torch.cat([part.index + first for part, (_, first) in zip(kept, trees, strict=True)])
        owner = torch.cat([part.owner + before for part, before in zip(kept, (0, len(kept[0])), strict=False)])
        size = torch.cat([part.boxes for part in kept if part.boxes is not None])
        _, height, width = tokens.grid
        t, y, x = index // (height * width), index // width % height, index % width
        boxes = torch.stack((t, y, x, y + size[:, 0], x + size[:, 1]), 1)
        features = torch.cat([part.features for part in kept])
        return Kept(features, index, owner, boxes, info={"threshold": threshold})


def search_threshold(trees: Sequence[Octrees], budget: float, total: int) -> float:
    """The highest threshold whose tokens are within the budget; all thresholds are counted at
    once."""
    spans = [tree.emitted_between() for tree in trees]
    low, high = (torch.cat(ends).sort().values for ends in zip(*spans, strict=True))
    candidates = torch.cat((high.new_tensor([LOWEST]), high[(high > LOWEST) & (high < HIGHEST)].unique()))
    candidates = torch.cat((candidates, high.new_tensor([HIGHEST])))
    counts = torch.searchsorted(low, candidates) - torch.searchsorted(high, candidates)
    best = int((counts <= max_tokens(budget, total)).sum()) - 1  # counts ascend with the threshold
    if best < 0 or int(counts[best]) / total > budget:
        best, least = 0, int(counts[0])
        warnings.warn(
            f"budget={budget} is below what this video allows: its root nodes are {least} of {total} tokens "
            f"({least / total:.4f}); ask for more, or lower root_level",
            BudgetWarning,
            stacklevel=4,
        )
    return float(candidates[best])


@dataclass(frozen=True)
class Octrees:
    """The trees over a batch of K equal grids (D, H, W); an axis of length 1 is never split.

    Attributes:
        levels: L tensors ``[K, d, h, w, C]`` in the input's dtype, coarsest first; the last one is
            the input.
        node, first, end: for each axis ``[L, n]`` int64: per level, the node over each of the n
            cells along that axis, and the first cell and the end (exclusive) of that node.
        min_child_similarity: ``[L - 1, K, D, H, W]`` float32, for every cell the lowest cosine
            similarity between the node over it and its children.
    """

    levels: list[torch.Tensor]
    node: tuple[torch.Tensor, ...]
    first: tuple[torch.Tensor, ...]
    end: tuple[torch.Tensor, ...]
    min_child_similarity: torch.Tensor

    @classmethod
    def of(cls, grid: torch.Tensor, root_level: int, odd_edge: OddEdge) -> Octrees:
        """Pool the pyramid of ``grid`` ``[K, D, H, W, C]`` and compare every node with its
        children."""
        _, depth, height, width, _ = grid.shape
        flat = pyramid_sizes(height, width)[root_level:] or [(height, width)]
        sizes = [(min(depth, h, w), h, w) for h, w in flat]
        axes = [
            [torch.from_numpy(table).to(grid.device) for table in (node, *node_extents(node))]
            for node in map(nodes_over_cells, zip(*sizes, strict=True))
        ]
        node, first, end = (tuple(tables) for tables in zip(*axes, strict=True))
        levels = [grid]
        similarity: list[torch.Tensor] = []
        for level in reversed(range(len(sizes) - 1)):
            levels.insert(0, _pool(levels[0]))
            lowest = _min_child_similarity(levels[1], levels[0], odd_edge)
            d, h, w = (table[level] for table in node)
            similarity.insert(0, lowest[:, d][:, :, h][:, :, :, w])
        shape = (0, *grid.shape[:-1])
        measured = torch.stack(similarity) if similarity else torch.empty(shape, device=grid.device)
        return cls(levels, node, first, end, measured)

    def tokens_at(self, threshold: float) -> Kept:
        """Tokens of this batch; ``index`` and ``owner`` within it, ``boxes`` ``[N', 2]`` rows and
        columns of a node."""
        finest, *shape = self.min_child_similarity.shape
        level = torch.full(shape, finest, device=self.levels[-1].device)
        for i in reversed(range(finest)):
            level.masked_fill_(self.min_child_similarity[i] >= threshold, i)
        cell = torch.arange(level.numel(), device=level.device)
        anchor = self._flat(cell, self._of_nodes(self.first, level, cell), shape[1:])
        is_anchor = anchor == cell
        index = is_anchor.nonzero().squeeze(1)
        owner = (is_anchor.cumsum(0) - 1)[anchor]

        level = level.flatten()[index]
        sides = torch.tensor([table.shape[1:4] for table in self.levels], device=level.device)
        starts = torch.tensor([table[..., 0].numel() for table in self.levels], device=level.device)
        starts = (starts.cumsum(0) - starts)[level]
        row = self._flat(index, self._of_nodes(self.node, level, index), sides[level].unbind(1)) + starts
        features = torch.cat([table.flatten(0, 3) for table in self.levels])[row]
        (_, top, left), (_, bottom, right) = (self._of_nodes(ends, level, index) for ends in (self.first, self.end))
        return Kept(features, index, owner, torch.stack((bottom - top, right - left), 1))

    def emitted_between(self) -> tuple[torch.Tensor, torch.Tensor]:
        """``low, high`` ``[n]`` float32: each of n nodes is a token at thresholds in (low,
        high]."""
        highest = torch.full_like(self.levels[-1][..., 0], -torch.inf, dtype=torch.float32)
        low, high = [], []
        for level in range(len(self.levels)):
            own = (
                self.min_child_similarity[level]
                if level < len(self.min_child_similarity)
                else torch.full_like(highest, torch.inf)
            )
            d, h, w = (table[level] == torch.arange(table.shape[1], device=table.device) for table in self.first)
            is_token = (d[:, None, None] & h[:, None] & w) & (highest < own)
            low.append(highest[is_token])
            high.append(own[is_token])
            highest = torch.maximum(highest, own)
        return torch.cat(low), torch.cat(high)

    def _of_nodes(self, tables: Sequence[torch.Tensor], level: torch.Tensor, cell: torch.Tensor) -> list[torch.Tensor]:
        """Along each axis, what a table says of the nodes of ``level`` over flat cells."""
        depth, height, width = self.levels[-1].shape[1:4]
        place = (cell // (height * width) % depth, cell // width % height, cell % width)
        return [table[level.flatten(), at] for table, at in zip(tables, place, strict=True)]

    def _flat(self, cell: torch.Tensor, at: Sequence[torch.Tensor], sides: Sequence[Any]) -> torch.Tensor:
        """Flat index of the places ``at`` in the grids of the cells' trees, which have these
        sides."""
        depth, height, width = self.levels[-1].shape[1:4]
        tree = cell // (depth * height * width)
        return ((tree * sides[0] + at[0]) * sides[1] + at[1]) * sides[2] + at[2]


def _windows(children: torch.Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Kernel and padding that pool ``[K, d, h, w, C]``; padding leaves the first index of an odd
    side alone."""
    sides = children.shape[1:4]
    return tuple(min(2, side) for side in sides), tuple(side % 2 if side > 1 else 0 for side in sides)


def _pool(children: torch.Tensor) -> torch.Tensor:
    """The next coarser level, averaged in float32, in the input's dtype."""
    kernel, padding = _windows(children)
    pooled = F.avg_pool3d(children.movedim(-1, 1).float(), kernel, kernel, padding, count_include_pad=False)
    return pooled.movedim(1, -1).to(children.dtype).contiguous()


def _min_child_similarity(children: torch.Tensor, parents: torch.Tensor, odd_edge: OddEdge) -> torch.Tensor:
    """``[K, d, h, w]`` float32: the lowest cosine similarity between each parent and its child
    slots."""
    kernel, odd = _windows(children)
    child_rows, parent_rows = children.flatten(0, 3), parents.flatten(0, 3)
    child_norms, parent_norms = (row_norms(rows).clamp(min=EPS) for rows in (child_rows, parent_rows))
    cells = torch.arange(len(parent_rows), device=children.device).view(parents.shape[:4])
    for axis in range(3):
        at = (torch.arange(children.shape[1 + axis], device=children.device) + odd[axis]) // kernel[axis]
        cells = cells.index_select(1 + axis, at)
    above = cells.flatten()
    dots = row_dots(child_rows, parent_rows, torch.arange(len(above), device=above.device), above)
    cosine = (dots / (child_norms * parent_norms[above])).view(children.shape[:4])
    lowest = -F.max_pool3d(-cosine[:, None], kernel, kernel, odd)[:, 0]
    if odd_edge == "masked" or not any(odd):
        return lowest

    # The published code fills the missing child slots on an odd side with the first child of the
    # cube.
    first = [torch.arange(n) < o for n, o in zip(parents.shape[1:4], odd, strict=True)]
    border = first[0][:, None, None] | first[1][:, None] | first[2]
    border = border.flatten().nonzero().squeeze(1).to(children.device)  # a matter of the shape: no look at the device
    tree = torch.arange(len(parents), device=children.device)[:, None]
    parent = (tree * parents[0, ..., 0].numel() + border).flatten()
    corner = (tree * children[0, ..., 0].numel()).expand(-1, len(border)).flatten()
    dots = row_dots(parent_rows, child_rows, parent, corner)
    cosine = dots / (parent_norms[parent] * child_norms[corner])
    flat = lowest.flatten()
    flat[parent] = torch.minimum(flat[parent], cosine)
    return flat.view_as(lowest)
