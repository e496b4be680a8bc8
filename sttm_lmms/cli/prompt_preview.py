"""The prompt that a video will have, made without weights and without pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from sttm_lmms.families.base import Family
from sttm_lmms.types import Message, PreparedInput, VisionFeatures
from sttm_lmms.video import VideoInfo, VideoSettings

_WIDTH, _HEIGHT, _FPS = 1280, 720, 30.0
"""Of a video that nobody has seen yet."""


def long_video(settings: VideoSettings, like: VideoInfo | None = None) -> VideoInfo:
    """A video of which ``max_frames`` frames are taken, in the size of another one or of 1280x720
    pixels."""
    seconds = math.ceil(settings.max_frames / settings.fps) + 2
    width, height = (like.width, like.height) if like else (_WIDTH, _HEIGHT)
    return VideoInfo("video.mp4", round(seconds * _FPS), _FPS, float(seconds), width, height)


def preview_video(family: Family, config: Any, info: VideoInfo, settings: VideoSettings) -> VisionFeatures:
    """Features of a video with a single channel: grid ``[T, H, W, 1]`` and what the prompt says
    about it."""
    shape = family.feature_shape(config, info, settings)
    if len(shape) == 3:  # (T, P, C) in front of the pooling
        side = math.ceil(math.isqrt(shape[1]) / 2)
        shape = (shape[0], side, side)
    t, h, w = shape[:3]
    numbers = family.sample(info, settings)
    seconds = info.seconds(numbers)
    metadata = {
        "vid": Path(info.path).stem,
        "video_time": info.duration,
        "frame_time": ",".join(f"{second:.2f}s" for second in seconds),
        "num_frames": len(numbers),
        "video_sample_fps": len(numbers) / info.duration,
        "video_grid_thw": [t, 2 * h, 2 * w],
        # With a variable rate, times in milliseconds stand for frame numbers.
        "video_fps": info.fps if info.times is None else 1000.0,
        "frame_indices": numbers if info.times is None else [round(1000 * second) for second in seconds],
    }
    return VisionFeatures(torch.zeros(t, h, w, 1), "video", metadata, projected=True)


def preview_prompt(
    family: Family,
    model: Any,
    processor: Any,
    messages: Sequence[Message],
    features: VisionFeatures,
    newline: str | None = None,
) -> tuple[PreparedInput, str]:
    """The prompt for ``messages`` about one video, and its text with each run of visual tokens as
    ``<N video tokens>``.

    ``model``, which has no weights, gets embeddings of one channel meanwhile: ids and lengths
    depend on no more.
    """
    embedding, image_newline = model.get_input_embeddings(), getattr(model.model, "image_newline", None)
    try:
        model.set_input_embeddings(torch.nn.Embedding(model.config.get_text_config().vocab_size, 1))
        if image_newline is not None:
            model.model.image_newline = torch.nn.Parameter(torch.zeros(1))
        with torch.inference_mode():
            prepared = family.prepare(model, processor, messages, [features], newline=newline)
    finally:
        model.set_input_embeddings(embedding)
        if image_newline is not None:
            model.model.image_newline = image_newline
    marks = {getattr(model.config, f"{kind}_token_id", None) for kind in ("video", "image")}  # GLM has one for both
    pieces = []
    for visual, run in groupby(prepared.input_ids[0].tolist(), key=lambda token: token in marks):
        ids = list(run)
        pieces.append(f"<{len(ids):,} video tokens>" if visual else processor.tokenizer.decode(ids))
    return prepared, "".join(pieces)
