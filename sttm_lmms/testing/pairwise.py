"""The straightforward pairwise formulation of STTM: a yardstick for tests and ``scripts/bench_merge.py``.

It follows the published formulation step by step on lists of nodes: gather the children of every node, compare the
boxes of all tokens of consecutive frames in an O(T*M^2) table (M = tokens of a frame), gather both sides of every pair.
Same result as :func:`sttm_lmms.methods.sttm.merge_video_tokens`, more time and memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from sttm_lmms.methods.sttm import STTMConfig
from sttm_lmms.methods.sttm.quadtree import OddEdge
from sttm_lmms.types import MergedTokens

EPS = 1e-8


@dataclass(frozen=True)
class _Level:
    """One pyramid level: features ``[T, h, w, C]`` and the cell coordinates ``[h + 1]``, ``[w + 1]`` of its edges."""

    features: torch.Tensor
    y_edges: torch.Tensor
    x_edges: torch.Tensor

    @property
    def areas(self) -> torch.Tensor:
        """``[h, w]`` cells in each node."""
        return self.y_edges.diff()[:, None] * self.x_edges.diff()

    def boxes(self, t: torch.Tensor, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """``[n, 5]`` boxes of nodes."""
        edges = (self.y_edges[y], self.x_edges[x], self.y_edges[y + 1], self.x_edges[x + 1])
        return torch.stack((t, *edges), 1)


def merge_pairwise(features: torch.Tensor, config: STTMConfig, head_dim: int | None = None) -> MergedTokens:
    """Merge ``[T, H, W, C]`` at the thresholds of ``config``. Arguments and result as in ``merge_video_tokens``.

    Raises:
        ValueError: ``config`` has a budget instead of thresholds.
    """
    if config.spatial_threshold is None or config.temporal_threshold is None:
        raise ValueError("the pairwise formulation needs thresholds; it has no budget search")
    frames, height, width, channels = features.shape
    heads = channels // head_dim if config.per_head and head_dim else 1

    levels = _pyramid(features, config)
    tokens, boxes = _quadtree_tokens(levels, config.spatial_threshold, config.odd_edge, heads)
    order = ((boxes[:, 0] * height + boxes[:, 1]) * width + boxes[:, 2]).argsort()
    tokens, boxes = tokens[order], boxes[order]
    areas = (boxes[:, 3] - boxes[:, 1]) * (boxes[:, 4] - boxes[:, 2])

    rep = torch.arange(len(tokens), device=features.device)
    if config.temporal_threshold > 0 and frames > 1:
        earlier, later = _nested_pairs(boxes, frames)
        similarity = _temporal_cosine(tokens[earlier], tokens[later], heads)
        kept = similarity >= config.temporal_threshold
        rep = _representatives(rep, earlier[kept], later[kept])

    survivors, group = rep.unique(return_inverse=True)
    weight = (areas if config.weighted_avg else torch.ones_like(areas)).float()
    total = torch.zeros(len(survivors), dtype=torch.float32, device=features.device).index_add_(0, group, weight)
    summed = torch.zeros(len(survivors), channels, dtype=torch.float32, device=features.device)
    summed.index_add_(0, group, tokens.float() * weight[:, None])
    return MergedTokens(
        features=(summed / total[:, None]).to(features.dtype),
        boxes=boxes[survivors],
        counts=torch.zeros_like(survivors).index_add_(0, group, areas),
        source_map=group[_owner_map(boxes, areas, height, width).view(frames, height, width)],
    )


def _pyramid(features: torch.Tensor, config: STTMConfig) -> list[_Level]:
    """Levels from the root to the grid itself."""
    _, h, w, _ = features.shape
    y_edges, x_edges = (torch.arange(side + 1, device=features.device) for side in (h, w))
    levels = [_Level(features, y_edges, x_edges)]
    while min(levels[0].features.shape[1:3]) > 2:
        finer = levels[0]
        areas = finer.areas if config.weighted_avg else torch.ones_like(finer.areas)
        weight = areas[None, ..., None].float()
        mean = _slots(finer.features * weight).sum(-2) / _slots(weight).sum(-2)
        levels.insert(0, _Level(mean.to(features.dtype), _coarser(finer.y_edges), _coarser(finer.x_edges)))
    return levels[min(config.root_level, len(levels) - 1) :]


def _slots(grid: torch.Tensor) -> torch.Tensor:
    """``[T, h, w, C]`` -> ``[T, ceil(h/2), ceil(w/2), 4, C]``: the four child slots, zero where there is no child."""
    _, h, w, _ = grid.shape
    padded = F.pad(grid, (0, 0, w % 2, 0, h % 2, 0))
    return padded.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).transpose(2, 3).flatten(3, 4)


def _coarser(edges: torch.Tensor) -> torch.Tensor:
    odd = (len(edges) - 1) % 2
    return torch.cat((edges[:odd], edges[odd::2]))


def _quadtree_tokens(
    levels: list[_Level], threshold: float, odd_edge: OddEdge, heads: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features ``[N, C]`` and boxes ``[N, 5]`` of the leaves of all frames, level by level."""
    device = levels[0].features.device
    nodes = torch.ones(levels[0].features.shape[:3], dtype=torch.bool, device=device).nonzero()
    slot = torch.arange(4, device=device)
    tokens, boxes = [], []
    for level, finer in zip(levels, [*levels[1:], None], strict=True):
        t, y, x = nodes.unbind(1)
        stops = torch.ones_like(t, dtype=torch.bool)
        if finer is not None:
            _, h, w, _ = finer.features.shape
            child_t = t[:, None].expand(-1, 4)
            child_y, child_x = 2 * y[:, None] + slot // 2 - h % 2, 2 * x[:, None] + slot % 2 - w % 2
            valid = (child_y >= 0) & (child_x >= 0)
            child_y, child_x = child_y * valid, child_x * valid
            parents = level.features[t, y, x][:, None].expand(-1, 4, -1)
            similar = _spatial_cosine(parents, finer.features[child_t, child_y, child_x], heads) >= threshold
            stops = (similar if odd_edge == "reference" else similar | ~valid).all(1)
            nodes = torch.stack((child_t, child_y, child_x), -1)[valid & ~stops[:, None]]
        tokens.append(level.features[t, y, x][stops])
        boxes.append(level.boxes(t[stops], y[stops], x[stops]))
    return torch.cat(tokens), torch.cat(boxes)


def _spatial_cosine(a: torch.Tensor, b: torch.Tensor, heads: int) -> torch.Tensor:
    a, b = (side.float().unflatten(-1, (heads, -1)) for side in (a, b))
    return F.cosine_similarity(a, b, dim=-1).mean(-1)


def _temporal_cosine(a: torch.Tensor, b: torch.Tensor, heads: int) -> torch.Tensor:
    a, b = (side.float().unflatten(-1, (heads, -1)) for side in (a, b))
    a, b = (side / (side.norm(dim=-1, keepdim=True) + EPS) for side in (a, b))
    return (a * b).sum(-1).mean(-1)


def _nested_pairs(boxes: torch.Tensor, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of all pairs of tokens of consecutive frames of which one box contains the other."""
    per_frame = torch.bincount(boxes[:, 0], minlength=frames)
    first = per_frame.cumsum(0) - per_frame
    place = torch.arange(len(boxes), device=boxes.device) - first[boxes[:, 0]]
    # Frames have different numbers of tokens; the padding box contains nothing and lies in nothing.
    table = torch.full((frames, int(per_frame.max()), 4), -1, dtype=torch.int32, device=boxes.device)
    table[..., :2] = -2
    table[boxes[:, 0], place] = boxes[:, 1:].int()
    real = table[..., 0] >= 0
    a, b = table[:-1, :, None], table[1:, None]

    def contains(outer: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
        return (outer[..., :2] <= inner[..., :2]).all(-1) & (outer[..., 2:] >= inner[..., 2:]).all(-1)

    nested = (contains(a, b) | contains(b, a)) & real[:-1, :, None] & real[1:, None]
    t, i, j = nested.nonzero().unbind(1)
    return first[t] + i, first[t + 1] + j


def _representatives(rep: torch.Tensor, earlier: torch.Tensor, later: torch.Tensor) -> torch.Tensor:
    while True:
        lower = torch.minimum(rep[earlier], rep[later])
        rep = rep.scatter_reduce(0, earlier, lower, "amin").scatter_reduce(0, later, lower, "amin")
        rep = rep[rep]
        if torch.equal(rep, rep[rep]):
            return rep


def _owner_map(boxes: torch.Tensor, areas: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """``[T*H*W]`` index of the token over each cell."""
    t, top, left, _, right = boxes.repeat_interleave(areas, 0).unbind(1)
    within = torch.arange(len(t), device=boxes.device) - (areas.cumsum(0) - areas).repeat_interleave(areas)
    wide = right - left
    cell = (t * height + top + within // wide) * width + left + within % wide
    owner = torch.arange(len(boxes), device=boxes.device).repeat_interleave(areas)
    return torch.empty_like(owner).scatter_(0, cell, owner)
