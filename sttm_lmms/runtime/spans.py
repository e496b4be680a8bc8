"""Find the video spans of a forward pass of a stock transformers model from its inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
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
    for row, ids in enumerate(input_ids.tolist()):
        for start, length in runs_of(ids, video_token):
            spans.append(VideoSpan(start, find_grid(config, row, start, length, position_ids), row))
    return spans


def runs_of(ids: Sequence[int], token: int) -> list[tuple[int, int]]:
    """``(start, length)`` of each run of ``token`` in one sequence."""
    runs, start = [], 0
    for is_token, group in groupby(ids, key=lambda one: one == token):
        length = sum(1 for _ in group)
        if is_token:
            runs.append((start, length))
        start += length
    return runs


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
        places = position_ids[-3:, min(row, position_ids.shape[1] - 1), start : start + length].tolist()
        t, h, w = (len(set(axis)) for axis in places)
        if t * h * w == length:
            return t, h, w
    raise UnsupportedModelError(
        f"row {row} has {length} video tokens from position {start} on without 3-D (t, h, w) positions; pass the "
        "processor's `mm_token_type_ids` and `video_grid_thw` to generate or forward, or M-RoPE falls back to 1-D"
    )


def expand_spans(spans: Sequence[VideoSpan], rows: int) -> list[VideoSpan]:
    """Spans for a batch whose rows were repeated in place (beams, several sequences per prompt)."""
    given = max((span.row for span in spans), default=0) + 1
    times = max(1, rows // given)
    return [replace(span, row=span.row * times + copy) for span in spans for copy in range(times)]
