"""SmolVLM2: small square frames, the time of each in the prompt, a Llama decoder.

Source: arXiv 2504.05299; frames as transformers' ``SmolVLMVideoProcessor`` samples them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn

from sttm_lmms.families.base import processor_resize
from sttm_lmms.families.frames import FrameFamily, numbered_frames
from sttm_lmms.families.requirements import check_package
from sttm_lmms.families.template import frame_places
from sttm_lmms.types import VideoSpan, VisionFeatures

if TYPE_CHECKING:
    from sttm_lmms.video import Video, VideoInfo, VideoSettings
    from sttm_lmms.video.pictures import Resize


def sample_frames(total_frames: int, fps: float, duration: float, settings: VideoSettings) -> list[int]:
    """Numbers of frames evenly spread over a video; long videos lose a second at each end.

    The published rule compares the duration with frames *times* rate, so that at one frame a second
    all videos of more than ``max_frames + 2`` seconds count as long.
    """
    count = max(1, min(round(settings.fps * duration), settings.max_frames))
    first, last = 0, total_frames - 1
    if duration - 2 > settings.max_frames * settings.fps:
        first, last = int(fps), min(int(total_frames - fps), last)
    if first >= last:
        first, last = 0, total_frames - 1
    return np.unique(np.linspace(first, last, count, dtype=int)).tolist()


class SmolVLM(FrameFamily):
    """HuggingFaceTB/SmolVLM2-256M/500M-Video-Instruct and SmolVLM2-2.2B-Instruct."""

    name: ClassVar[str] = "smolvlm"
    architectures: ClassVar[Mapping[str, str]] = {"SmolVLMForConditionalGeneration": "hf"}
    model_types: ClassVar[tuple[str, ...]] = ("smolvlm",)
    fixed_suffix: ClassVar[str] = "<fake_token_around_image>\n\n"

    def load_processor(self, path: Path, model: nn.Module) -> Any:
        check_package("num2words", "SmolVLM's processor, which writes the number of frames in words")
        return super().load_processor(path, model)

    def tower(self, model: Any) -> nn.Module:
        return model.model.vision_model

    def sample(self, info: VideoInfo, settings: VideoSettings) -> list[int]:
        """See :func:`sample_frames`; with a variable frame rate, evenly spread in time."""
        from sttm_lmms.video import frames_at, sample_uniform_fps

        if settings.sampling == "uniform_fps":
            return sample_uniform_fps(info, settings.fps, settings.max_frames)
        numbers = sample_frames(info.total_frames, info.fps, info.duration, settings)
        return numbers if info.times is None else frames_at(info, [number / info.fps for number in numbers])

    def resize(
        self, height: int, width: int, frames: int, settings: VideoSettings, processor: Any = None
    ) -> Resize | None:
        """Frames become small as they are read where the processor would leave them alone
        afterwards: where the two sizes to which it resizes them are one."""
        if processor is None:
            return None
        sizes = processor.video_processor
        if sizes.size["longest_edge"] != sizes.max_image_size["longest_edge"]:
            return None
        return partial(processor_resize, processor)

    def tile_side(self, config: Any) -> int:
        vision = config.vision_config
        return vision.image_size // vision.patch_size // config.scale_factor

    def encode(self, model: Any, tiles: torch.Tensor) -> torch.Tensor:
        (tokens,) = model.model.get_image_features(pixel_values=tiles[None]).pooler_output
        return tokens

    def image_tiles(self, processor: Any, image: Any) -> tuple[torch.Tensor, dict[str, Any]]:
        """Rows and columns of tiles, and the whole image as the last one."""
        batch = processor.image_processor(images=[[image]], return_row_col_info=True, return_tensors="pt")
        (rows,), (columns,) = batch["rows"][0], batch["cols"][0]
        return batch["pixel_values"][0], {"image_tiles": [int(rows), int(columns)]}

    def video_metadata(self, video: Video) -> dict[str, Any]:
        """Seconds of each frame and of the video, for the text."""
        return {**super().video_metadata(video), **frame_places(video), "video_time": video.duration}

    def pad_token(self, processor: Any, kind: str) -> str:
        """Images and frames are marked by the same token."""
        return str(processor.image_token)

    def placeholder_text(self, processor: Any, feature: VisionFeatures) -> str:
        """``Frame from 00:01:`` in front of each frame, and of how many seconds there are how many
        frames."""
        if feature.kind == "image":
            rows, columns = feature.metadata["image_tiles"]
            return str(processor.replace_image_token({"rows": [[rows]], "cols": [[columns]]}, 0))
        from transformers.video_utils import VideoMetadata

        noted = feature.metadata
        indices = list(noted["frame_indices"])
        about = VideoMetadata(len(indices), noted["video_fps"], duration=noted["video_time"], frames_indices=indices)
        video = {"pixel_values": feature.tensor[None], "video_metadata": [about]}
        return str(processor.replace_video_token(video, 0))

    def locate_spans(self, config: Any, input_ids: torch.Tensor, position_ids: torch.Tensor | None) -> list[VideoSpan]:
        """Runs of one tile each behind ``Frame from 00:01:``, the first also behind the duration
        ``0:00:16`` that the processor writes.

        Images have no such text. What is written is found without the vocabulary: SmolLM2's, like
        all byte-level ones, has "0" to "9" as ten single tokens in a row, followed by ":".
        """
        return numbered_frames(
            input_ids, config.image_token_id, self.tile_side(config), begins=_begins_video, follows=_follows
        )


def _clock(headline: list[int]) -> tuple[list[int], int] | None:
    """``... 01:02:<fake_token_around_image><global-img>`` as the text in front of the time, and
    seconds; None if there is no time."""
    if len(headline) < 8:
        return None
    zero = headline[-3] - 10  # the digits stand in front of ":"
    digits = [token - zero for token in headline[:-3]]
    start = next((place for place in range(len(digits) - 3, 0, -1) if not 0 <= digits[place - 1] <= 9), 0)
    minutes, colon, seconds = digits[start:-3], digits[-3], digits[-2:]
    if len(minutes) < 2 or colon != 10 or not all(0 <= digit <= 9 for digit in seconds):
        return None
    return headline[:start], 60 * int("".join(map(str, minutes))) + 10 * seconds[0] + seconds[1]


def _begins_video(headline: list[int]) -> bool:
    """Whether ``H:MM:SS``, the duration, stands in front of a time."""
    found, colon = _clock(headline), headline[-3] if len(headline) > 2 else 0
    if found is None:
        return False
    kinds = [":" if token == colon else "0" if 0 < colon - token <= 10 else "." for token in found[0]]
    return "0:00:00" in "".join(kinds)


def _follows(before: list[int], headline: list[int]) -> bool:
    """Whether the same words stand in front of a time that is not earlier, behind no duration."""
    last, new = _clock(before), _clock(headline)
    if last is None or new is None or _begins_video(headline):
        return False
    words = new[0][1:]  # behind the token that ends the frame before
    return last[1] <= new[1] and last[0][-len(words) :] == words
