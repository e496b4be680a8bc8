"""The public entry: thresholds or a budget in, merged tokens out."""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch

from sttm_lmms.config import STTMConfig
from sttm_lmms.merging.budget import BudgetWarning, Profile, search_budget
from sttm_lmms.merging.quadtree import Quadtrees
from sttm_lmms.merging.sttm import merge_at, plant
from sttm_lmms.merging.tokens import MergedTokens


def merge_video_tokens(features: torch.Tensor, config: STTMConfig, head_dim: int | None = None) -> MergedTokens:
    """Merge the visual tokens of one video.

    With ``config.budget`` the kept share lies in (budget - 0.01, budget] wherever the search of
    :mod:`sttm_lmms.merging.search` finds thresholds for that. Where it does not, a :class:`BudgetWarning` tells why:
    either the budget is below the video's floor, the share that the lowest thresholds keep, and the result is that
    floor; or shares jump over the budget, and the result is the largest share found below it.

    Args:
        features: ``[T, H, W, C]``, any float dtype and device, T, H, W >= 1.
        config: thresholds, or a budget; ``start_layer`` and ``decode_positions`` play no role here.
        head_dim: channels of an attention head; needed with ``config.per_head``, unused without.

    Returns:
        The tokens in sequence order. ``info`` holds ``spatial_threshold`` and ``temporal_threshold``, and after a
        search also the requested ``budget`` and the number of ``evaluations``; thresholds found by a search give the
        same tokens when they are given as thresholds.

    Raises:
        ValueError: ``features`` has another rank or is empty, or ``head_dim`` is missing or does not divide C.
        TypeError: ``features`` is not floating point.
    """
    trees = plant(features, config, head_dim)
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
