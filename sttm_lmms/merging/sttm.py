"""STTM: spatial quadtrees, then temporal merging (arXiv 2507.07990, section 3)."""

from __future__ import annotations

import torch

from sttm_lmms.config import STTMConfig
from sttm_lmms.merging.average import average_groups
from sttm_lmms.merging.quadtree import Partition, Quadtrees, build_quadtrees, partition_at
from sttm_lmms.merging.temporal import merge_in_time, pair_similarities
from sttm_lmms.merging.tokens import MergedTokens


def plant(features: torch.Tensor, config: STTMConfig, head_dim: int | None = None) -> Quadtrees:
    """Check the input and build its quadtrees. Arguments and errors as in ``merge_video_tokens``."""
    if features.dim() != 4 or 0 in features.shape:
        raise ValueError(f"features have shape {tuple(features.shape)}; they must be a non-empty [T, H, W, C]")
    if not features.is_floating_point():
        raise TypeError(f"features are {features.dtype}; they must be floating point")
    if config.per_head and (head_dim is None or head_dim < 1 or features.shape[-1] % head_dim):
        raise ValueError(f"per_head=True needs a head_dim that divides C={features.shape[-1]}, not {head_dim}")
    return build_quadtrees(
        features,
        config.root_level,
        weighted_avg=config.weighted_avg,
        head_dim=head_dim if config.per_head else None,
        odd_edge=config.odd_edge,
    )


def merge_at(trees: Quadtrees, spatial: float, temporal: float, *, weighted_avg: bool = False) -> MergedTokens:
    """The tokens of a video at a pair of thresholds; ``info`` holds the two."""
    partition = partition_at(trees.layout, trees.agreement, spatial)
    owner = merge_in_time(
        partition, temporal, lambda pairs: pair_similarities(trees, pairs.cell, pairs.earlier_level, pairs.later_level)
    )
    return _collect(
        trees, partition, owner, weighted_avg, {"spatial_threshold": spatial, "temporal_threshold": temporal}
    )


def _collect(
    trees: Quadtrees, partition: Partition, owner: torch.Tensor, weighted_avg: bool, info: dict[str, float]
) -> MergedTokens:
    """Number the surviving tokens and average their members; ``owner`` ``[T, H, W]`` holds survivors' anchors."""
    layout, level = trees.layout, partition.level.flatten()
    survives = owner.flatten() == torch.arange(owner.numel(), device=owner.device)
    survivor = survives.nonzero().squeeze(1)
    source_map = (survives.cumsum(0) - 1)[owner]
    counts = _occurrences(source_map.flatten(), len(survivor))
    t, y, x = layout.coordinates(survivor)
    boxes = torch.stack((t, y, x, layout.bottom[level[survivor], y], layout.right[level[survivor], x]), 1)

    anchor = partition.is_anchor.flatten().nonzero().squeeze(1)
    group, order = source_map.flatten()[anchor].sort(stable=True)
    member = anchor[order]
    sizes = _occurrences(group, len(survivor))
    if weighted_avg:
        cells = _occurrences(partition.anchor.flatten(), owner.numel())
        weight = cells[member].float() / counts[group].float()
    else:
        weight = sizes[group].float().reciprocal()
    features = average_groups(trees, member, level[member], weight, sizes)
    return MergedTokens(features, boxes, counts, source_map, info)


def _occurrences(index: torch.Tensor, length: int) -> torch.Tensor:
    """How often each of 0..length-1 occurs; like ``bincount``, which would make a GPU wait for the largest index."""
    return torch.zeros(length, dtype=torch.int64, device=index.device).index_add_(0, index, torch.ones_like(index))
