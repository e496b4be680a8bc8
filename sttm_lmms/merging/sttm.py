"""STTM: spatial quadtrees, then temporal merging (arXiv 2507.07990, section 3)."""

from __future__ import annotations

import torch

from sttm_lmms.config import STTMConfig
from sttm_lmms.merging.quadtree import Partition, Quadtrees, build_quadtrees
from sttm_lmms.merging.rows import TokenRows, average_groups
from sttm_lmms.merging.temporal import overlapping_pairs, pair_similarities, representatives
from sttm_lmms.merging.tokens import MergedTokens


def merge_video_tokens(features: torch.Tensor, config: STTMConfig, head_dim: int | None = None) -> MergedTokens:
    """Merge the visual tokens of one video.

    Args:
        features: ``[T, H, W, C]``, any float dtype and device, T, H, W >= 1.
        config: thresholds, or a budget; ``start_layer`` and ``decode_positions`` play no role here.
        head_dim: channels of an attention head; needed with ``config.per_head``, unused without.

    Returns:
        The tokens in sequence order. ``info`` holds ``spatial_threshold`` and ``temporal_threshold``.

    Raises:
        ValueError: ``features`` has another rank or is empty, or ``head_dim`` is missing or does not divide C.
        TypeError: ``features`` is not floating point.
    """
    trees = plant(features, config, head_dim)
    return merge_at(trees, config.spatial_threshold, config.temporal_threshold, config.weighted_avg)


def plant(features: torch.Tensor, config: STTMConfig, head_dim: int | None = None) -> Quadtrees:
    """Check the input and build its quadtrees. Arguments and errors as in :func:`merge_video_tokens`."""
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


def merge_at(trees: Quadtrees, spatial: float, temporal: float, weighted_avg: bool = False) -> MergedTokens:
    """The tokens of a video at a pair of thresholds."""
    partition = trees.partition(spatial)
    owner = partition.anchor
    if temporal > 0 and owner.shape[0] > 1:
        pairs = overlapping_pairs(partition)
        kept = pair_similarities(trees, pairs) >= temporal
        owner = representatives(partition, pairs.earlier[kept], pairs.later[kept])
    return _collect(
        trees, partition, owner, weighted_avg, {"spatial_threshold": spatial, "temporal_threshold": temporal}
    )


def _collect(
    trees: Quadtrees, partition: Partition, owner: torch.Tensor, weighted_avg: bool, info: dict[str, float]
) -> MergedTokens:
    """Number the surviving tokens and average their members; ``owner`` ``[T, H, W]`` holds survivors' anchors."""
    height, width = owner.shape[1:]
    cells = torch.arange(owner.numel(), device=owner.device)
    survives = owner.flatten() == cells
    source_map = (survives.cumsum(0) - 1)[owner]
    survivor = survives.nonzero().squeeze(1)
    counts = torch.bincount(source_map.flatten(), minlength=len(survivor))

    level = partition.level.flatten()
    t, y, x = survivor // (height * width), survivor // width % height, survivor % width
    layout, kept_level = trees.layout, level[survivor]
    boxes = torch.stack((t, y, x, layout.bottom[kept_level, y], layout.right[kept_level, x]), 1)

    anchor = partition.is_anchor.flatten().nonzero().squeeze(1)
    group, order = source_map.flatten()[anchor].sort(stable=True)
    member = anchor[order]
    sizes = torch.bincount(group, minlength=len(survivor))
    if weighted_avg:
        area = torch.bincount(partition.anchor.flatten(), minlength=owner.numel())[member]
        weight = area.float() / counts[group].float()
    else:
        weight = sizes[group].float().reciprocal()
    features = trees.levels[-1].new_empty(len(survivor), trees.levels[-1].shape[-1])
    average_groups(TokenRows(trees, level[member], member), weight, sizes, features)
    return MergedTokens(features, boxes, counts, source_map, info)
