"""Find the video spans of a forward pass of a stock transformers model from its inputs."""

from __future__ import annotations

import math
from typing import Any

import torch

from sttm_lmms.errors import UnsupportedModelError
from sttm_lmms.types import VideoSpan


def locate_spans(config: Any, input_ids: torch.Tensor, position_ids: torch.Tensor | None) -> list[VideoSpan]:
    """Video spans of ``input_ids`` ``[B, L]``.

    Args:
        config: the whole model's config.
        position_ids: the positions that reach the decoder; for Qwen2-VL ``[3 or 4, B, L]``, which carry the grid.

    Raises:
        UnsupportedModelError: the model type is unknown, or the tokens of a video do not form its grid.
    """
    video_token = getattr(config, "video_token_id", None)
    find_grid = {"llava_onevision": _llava_grid, "qwen2_vl": _mrope_grid}.get(config.model_type)
    if find_grid is None or video_token is None:
        raise UnsupportedModelError(
            f"model type {config.model_type!r} is not supported: videos are found in llava_onevision (LLaVA-Video, "
            "LLaVA-OneVision) and qwen2_vl models; pass spans= to reduce_tokens for any other decoder"
        )
    spans = []
    for row, start, length in _runs(input_ids == video_token):
        grid = find_grid(config, row, start, length, position_ids)
        spans.append(VideoSpan(start, grid, row))
    return spans


def _runs(mask: torch.Tensor) -> list[tuple[int, int, int]]:
    """(row, start, length) of each run of True in ``mask`` ``[B, L]``."""
    padded = torch.nn.functional.pad(mask.to(torch.int8), (1, 1))
    steps = padded.diff(dim=-1)
    starts, ends = (steps == 1).nonzero().tolist(), (steps == -1).nonzero().tolist()
    return [(row, start, end - start) for (row, start), (_, end) in zip(starts, ends, strict=True)]


def _llava_grid(config: Any, row: int, start: int, length: int, _: torch.Tensor | None) -> tuple[int, int, int]:
    """Frames of pooled H x W tokens; the stock class appends one newline token, which stays out of the grid."""
    vision = config.vision_config
    side = math.ceil(vision.image_size // vision.patch_size / 2)
    frames, rest = divmod(length, side * side)
    if side > 1 and rest <= 1 and frames:
        return frames, side, side
    if side == 1 and length > 1:
        return length - 1, 1, 1
    raise UnsupportedModelError(
        f"row {row} has {length} video tokens from position {start} on, which is not a number of {side}x{side} frames "
        "with at most one newline token; several videos in one prompt need text between them"
    )


def _mrope_grid(
    config: Any, row: int, start: int, length: int, position_ids: torch.Tensor | None
) -> tuple[int, int, int]:
    """The grid is read off the (t, h, w) positions, because `generate` does not hand `video_grid_thw` on."""
    if position_ids is not None and position_ids.ndim == 3:
        places = position_ids[-3:, min(row, position_ids.shape[1] - 1), start : start + length]
        t, h, w = (len(axis.unique()) for axis in places)
        if t * h * w == length:
            return t, h, w
    raise UnsupportedModelError(
        f"row {row} has {length} video tokens from position {start} on without 3-D (t, h, w) positions; pass the "
        "processor's `mm_token_type_ids` and `video_grid_thw` to generate or forward, or M-RoPE falls back to 1-D"
    )
