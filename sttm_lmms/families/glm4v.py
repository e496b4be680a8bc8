"""GLM-4.1V, 4.5V and 4.6V: videos are runs of image tokens between two marks, a time behind each pair
of frames.

Source: arXiv 2507.01006; frames and their size as transformers' ``Glm4vVideoProcessor``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from sttm_lmms.families.base import runs
from sttm_lmms.families.qwen2_vl import frame_grid
from sttm_lmms.families.qwen3_vl import Qwen3VL
from sttm_lmms.types import VideoSpan

if TYPE_CHECKING:
    from sttm_lmms.video import VideoInfo, VideoSettings

# Pixels of all frames of a video together (its processor's `size`): 60,000 tokens of 28x28.
_MOST_PIXELS = 28 * 28 * 2 * 30000
_FEWEST_PIXELS = 112 * 112


class Glm4v(Qwen3VL):
    """GLM-4.1V-9B, GLM-4.5V (a mixture of experts) and GLM-4.6V; positions and frames in pairs are
    those of Qwen3-VL, without deepstack."""

    name: ClassVar[str] = "glm4v"
    architectures: ClassVar[Mapping[str, str]] = {
        "Glm4vForConditionalGeneration": "hf",
        "Glm4vMoeForConditionalGeneration": "hf",
        "Glm46VForConditionalGeneration": "hf",
    }
    model_types: ClassVar[tuple[str, ...]] = ("glm4v", "glm4v_moe", "glm46v")
    start_layer: ClassVar[int] = 2
    # The time that follows it is counted to the question: it is the video's last, and few tokens.
    fixed_suffix: ClassVar[str] = "<|end_of_image|>"
    template_settings: ClassVar[Mapping[str, Any]] = {"enable_thinking": False}
    side: ClassVar[int] = 28
    call_settings: ClassVar[Mapping[str, Any]] = {}

    def load_processor(self, path: Any, model: Any) -> Any:
        processor = super().load_processor(path, model)
        config = model.config
        config.image_token_id = processor.image_token_id
        config.video_start_token_id, config.video_end_token_id = processor.video_start_id, processor.video_end_id
        return processor

    def sample(self, info: VideoInfo, settings: VideoSettings) -> list[int]:
        """An even number of frames at ``settings.fps``, or ``max_frames`` evenly spread from the first
        to the last: with 2 a second and 600 those of the processor of GLM-4.1V and 4.5V."""
        if settings.sampling != "model" or info.times is not None:
            return super().sample(info, settings)
        return sample_frames(info.total_frames, info.fps, info.duration, settings.fps, settings.max_frames)

    def frame_size(self, height: int, width: int, frames: int, settings: VideoSettings) -> tuple[int, int]:
        """As the processor does; ``min_pixels`` and ``max_pixels`` narrow its limits on all frames
        together."""
        from transformers.models.glm4v.video_processing_glm4v import smart_resize

        frames += frames % 2  # a single frame is shown twice
        return smart_resize(
            frames,
            height,
            width,
            factor=self.side,
            min_pixels=max(_FEWEST_PIXELS, frames * (settings.min_pixels or 0)),
            max_pixels=min(_MOST_PIXELS, frames * (settings.max_pixels or _MOST_PIXELS)),
        )

    def pad_token(self, processor: Any, kind: str) -> str:
        """Images and videos are marked by the same token."""
        return str(processor.image_token)

    def locate_spans(self, config: Any, input_ids: torch.Tensor, position_ids: torch.Tensor | None) -> list[VideoSpan]:
        """Runs of image tokens between ``<|begin_of_video|>`` and ``<|end_of_video|>``."""
        begun = (input_ids == config.video_start_token_id).cumsum(-1)
        ended = (input_ids == config.video_end_token_id).cumsum(-1)
        frames = runs((input_ids == config.image_token_id) & (begun > ended))
        spans = []
        for (row, _), video in groupby(frames, key=lambda run: (run[0], int(begun[run[0], run[1]]))):
            pieces = tuple((start, length) for _, start, length in video)
            height, width = frame_grid(position_ids, row, *pieces[0])
            grid = (len(pieces), height, width)
            spans.append(VideoSpan(pieces[0][0], grid, row, pieces=pieces if len(pieces) > 1 else None))
        return spans


def sample_frames(total_frames: int, video_fps: float, duration: float, fps: float, max_frames: int) -> list[int]:
    """Numbers of the frames that GLM-4.1V's processor takes: ``fps`` a second from the first on; of a
    video for which ``max_frames`` are too few, so many evenly spread. The last is repeated where
    that is an odd number.

    Args:
        total_frames, video_fps, duration: of the video; the duration in seconds.
    """
    last = total_frames - 1
    if duration * fps <= max_frames:
        seconds = np.arange(max(1, math.floor(duration * fps))) / fps
    else:
        seconds = np.linspace(0, duration, max_frames)
    numbers = np.minimum(last, np.ceil(seconds * video_fps).astype(int))
    if max_frames >= total_frames < duration * fps:
        numbers = np.arange(total_frames)
    unique = list(dict.fromkeys(numbers.tolist()))
    return unique + unique[-1:] * (len(unique) % 2)
