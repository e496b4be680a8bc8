"""The public entry: thresholds or a budget in, merged tokens out (arXiv 2507.07990, section 3)."""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch

from sttm_lmms.config import STTMConfig
from sttm_lmms.methods.sttm.average import average_groups
from sttm_lmms.methods.sttm.budget import BudgetWarning, Profile, search_budget
from sttm_lmms.methods.sttm.quadtree import Partition, Quadtrees, build_quadtrees, partition_at
from sttm_lmms.methods.sttm.temporal import merge_in_time, pair_similarities
from sttm_lmms.types import MergedTokens


def merge_video_tokens(features: torch.Tensor, config: STTMConfig, head_dim: int | None = None) -> MergedTokens:
    """Merge the visual tokens of one video.

    With ``config.budget`` the kept share lies in (budget - 0.01, budget] wherever the search of
    :mod:`sttm_lmms.methods.sttm.search` finds thresholds for that. Where it does not, a :class:`BudgetWarning` tells
    why: either the budget is below the video's floor, the share that the lowest thresholds keep, and the result is
    that floor; or shares jump over the budget, and the result is the largest share found below it.

    Args:
        features: ``[T, H, W, C]``, any float dtype and device, T, H, W >= 1.
        config: thresholds, or a budget; ``start_layer`` and ``decode_positions`` play no role here.
        head_dim: channels of an attention head; needed with ``config.per_head``, unused without.

    Returns:
        The tokens in sequence order. ``info`` holds ``spatial_threshold`` and ``temporal_threshold``, the number of
        tokens ``after_spatial``, that is before any merged in time, and after a
        search also the requested ``budget`` and the number of ``evaluations``; thresholds found by a search give the
        same tokens when they are given as thresholds.

    Raises:
        ValueError: ``features`` has another rank or is empty, or ``head_dim`` is missing or does not divide C.
        TypeError: ``features`` is not floating point.
    """
    trees = build_quadtrees(features, config, head_dim)
    if config.budget is not None:
        return _merge_to_budget(trees, config.budget, config.weighted_avg)
    assert config.spatial_threshold is not None
    assert config.temporal_threshold is not None
    return merge_at(trees, config.spatial_threshold, config.temporal_threshold, weighted_avg=config.weighted_avg)


def _merge_to_budget(trees: Quadtrees, budget: float, weighted_avg: bool) -> MergedTokens:
    search = search_budget(Profile.of(trees), budget)
    merged = merge_at(trees, *search.best, weighted_avg=weighted_avg)
    if not search.within():
        kept = f"{len(merged)} of {merged.source_map.numel()} tokens ({merged.budget:.4f})"
        if search.best_share is None:
            reason = f"is below what this video allows: its lowest thresholds keep {kept}"
        else:
            reason = f"is not met: in this video shares jump over it, and the largest found below it is {kept}"
        warnings.warn(f"budget={budget} {reason}", BudgetWarning, stacklevel=3)
    return replace(merged, info={**merged.info, "budget": budget, "evaluations": search.evaluations})


def merge_at(trees: Quadtrees, spatial: float, temporal: float, *, weighted_avg: bool = False) -> MergedTokens:
    """The tokens of a video at a pair of thresholds; ``info`` holds the two and the tokens after the spatial step."""
    partition = partition_at(trees.layout, trees.min_child_similarity, spatial)
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
    return MergedTokens(features, boxes, counts, source_map, {**info, "after_spatial": len(anchor)})


def _occurrences(index: torch.Tensor, length: int) -> torch.Tensor:
    """How often each of 0..length-1 occurs; like ``bincount``, which would make a GPU wait for the largest index."""
    return torch.zeros(length, dtype=torch.int64, device=index.device).index_add_(0, index, torch.ones_like(index))
