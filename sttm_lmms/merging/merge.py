"""The public entry: thresholds or a budget in, merged tokens out."""

from __future__ import annotations

import torch

from sttm_lmms.config import STTMConfig
from sttm_lmms.merging.sttm import merge_at, plant
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
    assert config.spatial_threshold is not None
    assert config.temporal_threshold is not None
    return merge_at(trees, config.spatial_threshold, config.temporal_threshold, weighted_avg=config.weighted_avg)
