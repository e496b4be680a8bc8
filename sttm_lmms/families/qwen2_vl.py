"""Qwen2-VL: frames by qwen-vl-utils, one token per 28x28 pixels of two frames, multimodal rotary
positions.

Source: arXiv 2409.12191, sections 2.1 (M-RoPE, unified image and video understanding).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from sttm_lmms.errors import UnsupportedModelError
from sttm_lmms.families.assemble import Assembled, device_of
from sttm_lmms.families.base import runs
from sttm_lmms.families.template import TemplateFamily
from sttm_lmms.types import VideoSpan, VisionFeatures

if TYPE_CHECKING:
    from sttm_lmms.video import Video, VideoInfo, VideoSettings
    from sttm_lmms.video.pictures import Resize

VISION_END = "<|vision_end|>"

# Frames that go through the vision tower at once (its attention never crosses a pair of frames).
_CHUNK = 32

# A token's side in pixels: 2x2 patches of 14.
_SIDE = 28


def mrope_positions(
    length: int, visuals: Sequence[tuple[int, tuple[int, int, int]]], intervals: Sequence[float] | None = None
) -> torch.Tensor:
    """Multimodal rotary positions of one sequence.

    Text counts up on all three axes; a visual's token (t, y, x) stands at the next free position
    plus (t, y, x), with t scaled by the visual's interval and rounded down; what follows starts
    after the largest position so far, as the checkpoints were trained. (transformers 5.17 to 5.24
    go on after the larger of height and width only, so that text overlaps a video that reaches
    further in time than that.)

    Args:
        length: tokens of the sequence.
        visuals: (start, (T, H, W)) of each visual, in order; T*H*W tokens each.
        intervals: steps on the first axis from one t to the next, of each visual; None is 1 for
            all.

    Returns:
        ``[3, 1, length]`` int64: axes (t, y, x).
    """
    pieces: list[torch.Tensor] = []
    done, position = 0, 0
    for (start, (t, h, w)), interval in zip(visuals, intervals or [1.0] * len(visuals), strict=True):
        pieces.append(torch.arange(position, position + start - done).expand(3, -1))
        position += start - done
        times = (torch.arange(t, dtype=torch.float32) * interval).long()
        cells = torch.meshgrid(times, torch.arange(h), torch.arange(w), indexing="ij")
        pieces.append(torch.stack(cells).reshape(3, -1) + position)
        position += max(int(times[-1]) + 1, h, w)
        done = start + t * h * w
    pieces.append(torch.arange(position, position + length - done).expand(3, -1))
    return torch.cat(pieces, dim=1)[:, None]


def frame_numbers(info: VideoInfo, settings: VideoSettings) -> list[int]:
    """Numbers of the frames that are shown, by the rule that ``settings.sampling`` names.

    With ``uniform_fps`` the last frame is repeated where the rule gives an odd number, so that all
    frames have a pair.
    """
    from sttm_lmms.video import sample_uniform_fps, spread_in_time

    if settings.sampling == "model":
        numbers = sample_frames(info.total_frames, info.fps, settings)
        # With a variable frame rate, frames evenly spread in time; where most are wanted, as many
        # as there are.
        uneven = info.times is not None and len(numbers) < info.total_frames - 1
        return spread_in_time(info, len(numbers)) if uneven else numbers
    numbers = sample_uniform_fps(info, settings.fps, settings.max_frames)
    return numbers + numbers[-1:] * (len(numbers) % 2)


def sample_frames(total_frames: int, video_fps: float, settings: VideoSettings) -> list[int]:
    """Indices of an even number of frames, evenly spread from the first to the last, as
    qwen-vl-utils takes them.

    A video of one frame gives that frame (the processor repeats it to fill a pair).
    """
    from qwen_vl_utils.vision_process import smart_nframes

    if total_frames < 2:
        return list(range(total_frames))
    wanted = {"fps": settings.fps, "max_frames": max(2, settings.max_frames)}
    count = smart_nframes(wanted, total_frames=total_frames, video_fps=video_fps)
    return torch.linspace(0, total_frames - 1, count).round().long().tolist()


def frame_size(height: int, width: int, frames: int, settings: VideoSettings, side: int = _SIDE) -> tuple[int, int]:
    """Height and width in pixels to which qwen-vl-utils resizes the frames of a video; ``side`` is
    a token's."""
    from qwen_vl_utils import vision_process as qwen

    default = 128 * side**2
    low = settings.min_pixels or min(default, settings.max_pixels or default)
    total = qwen.MODEL_SEQ_LEN * side**2 * 0.9
    high = max(min(768 * side**2, total / frames * qwen.FRAME_FACTOR), int(low * 1.05))
    most = min(high, settings.max_pixels or high)
    tall, wide = qwen.smart_resize(height, width, side, min_pixels=low, max_pixels=most)
    if min(tall, wide) == 0:  # room for a few tokens only: qwen-vl-utils rounds the shorter side down to nothing
        longer = max(side, most // side // side * side)
        return (side, min(max(wide, side), longer)) if tall == 0 else (min(max(tall, side), longer), side)
    return tall, wide


class Qwen2VL(TemplateFamily):
    """Qwen2-VL-2B/7B/72B-Instruct, and what its successors share with it."""

    name: ClassVar[str] = "qwen2_vl"
    architectures: ClassVar[Mapping[str, str]] = {"Qwen2VLForConditionalGeneration": "hf"}
    model_types: ClassVar[tuple[str, ...]] = ("qwen2_vl",)
    mrope: ClassVar[bool] = True
    pixel_limits: ClassVar[bool] = True
    fixed_suffix: ClassVar[str] = VISION_END
    side: ClassVar[int] = _SIDE
    """Pixels along one side of a token."""
    call_settings: ClassVar[Mapping[str, Any]] = {"cap_pixels_per_frame": False}
    """What else the video processor is called with."""

    def sample(self, info: VideoInfo, settings: VideoSettings) -> list[int]:
        """An even number of frames at ``settings.fps``, at most ``max_frames``."""
        return frame_numbers(info, settings)

    def resize(
        self, height: int, width: int, frames: int, settings: VideoSettings, processor: Any = None
    ) -> Resize | None:
        """As qwen-vl-utils does, whatever the processor."""
        return partial(_resize, size=self.frame_size(height, width, frames, settings))

    def frame_size(self, height: int, width: int, frames: int, settings: VideoSettings) -> tuple[int, int]:
        """Height and width in pixels of this many frames of a video."""
        return frame_size(height, width, frames, settings, self.side)

    def feature_shape(self, config: Any, info: VideoInfo, settings: VideoSettings) -> tuple[int, ...]:
        """``(T, H, W, C)``."""
        frames = len(self.sample(info, settings))
        height, width = self.frame_size(info.height, info.width, frames, settings)
        return *self.token_grid(config, (frames, height, width)), self.feature_channels(config)

    def token_grid(self, config: Any, pixels: tuple[int, int, int]) -> tuple[int, int, int]:
        frames, height, width = pixels
        return -(-frames // 2), height // self.side, width // self.side

    def feature_channels(self, config: Any) -> int:
        """Channels of the vision features, from the model's ``config``."""
        return int(config.text_config.hidden_size)

    def encode(self, model: Any, patches: torch.Tensor, grid_thw: torch.Tensor) -> torch.Tensor:
        """See :func:`run_vision_tower`."""
        return run_vision_tower(model, patches, grid_thw)

    @torch.no_grad()
    def vision_features(
        self, model: Any, processor: Any, visual: Any, chunks: Iterable[Any] | None = None
    ) -> VisionFeatures:
        """Tokens after the patch merger, ``[T, H, W, C]``; an image has T = 1."""
        if not hasattr(visual, "frames"):
            batch = processor.image_processor(images=[visual.convert("RGB")], return_tensors="pt")
            grid = batch["image_grid_thw"]
            return VisionFeatures(
                self.encode(model, batch["pixel_values"], grid), "image", {"image_grid_thw": grid[0].tolist()}
            )
        features, grid = [], [0, 0, 0]
        for batch in self.chunks(processor, visual) if chunks is None else chunks:
            features.append(self.encode(model, batch["pixel_values_videos"], batch["video_grid_thw"]))
            t, *grid[1:] = batch["video_grid_thw"][0].tolist()
            grid[0] += t
        metadata = {"video_sample_fps": float(visual.sample_fps), "video_grid_thw": grid}
        return VisionFeatures(torch.cat(features), "video", {**metadata, **self.extra_metadata(visual)})

    def chunks(self, processor: Any, video: Video) -> Iterator[Any]:
        """``pixel_values_videos`` and ``video_grid_thw``."""
        unfit = any(side % self.side for side in video.frames.shape[1:3])  # frames that did not come from read_video
        for start in range(0, len(video.frames), _CHUNK):
            frames = torch.from_numpy(video.frames[start : start + _CHUNK]).permute(0, 3, 1, 2)
            yield processor.video_processor(
                videos=[frames],
                do_resize=unfit,
                do_sample_frames=False,
                return_tensors="pt",
                **self.call_settings,
            )

    def extra_metadata(self, video: Video) -> dict[str, Any]:
        """Further plain values about a video that prompts or positions depend on."""
        return {}

    def placeholder_text(self, processor: Any, feature: VisionFeatures) -> str:
        return self.pad_token(processor, feature.kind) * feature.tensor[..., 0].numel()

    def positions(self, model: Any, features: Sequence[VisionFeatures], sequence: Assembled) -> torch.Tensor:
        """See :func:`mrope_positions`."""
        visuals = [(start, _grid(feature)) for start, feature in zip(sequence.starts, features, strict=True)]
        return mrope_positions(sequence.input_ids.shape[1], visuals)

    def locate_spans(self, config: Any, input_ids: torch.Tensor, position_ids: torch.Tensor | None) -> list[VideoSpan]:
        """One run of tokens a video; the grid is read off the (t, h, w) positions, because
        ``generate`` does not hand ``video_grid_thw`` on."""
        spans = []
        for row, start, length in runs(input_ids == config.video_token_id):
            height, width = frame_grid(position_ids, row, start, length)
            spans.append(VideoSpan(start, (length // (height * width), height, width), row))
        return spans


def frame_grid(position_ids: torch.Tensor | None, row: int, start: int, length: int) -> tuple[int, int]:
    """(H, W) of the video tokens ``start .. start + length`` of a row, from their 3-D positions.

    Raises:
        UnsupportedModelError: these are no positions of a grid.
    """
    if position_ids is not None and position_ids.ndim == 3 and len(position_ids) >= 3:
        places = position_ids[-3:, min(row, position_ids.shape[1] - 1), start : start + length]
        height, width = (len(axis.unique()) for axis in places[1:])
        if length % (height * width) == 0:
            return height, width
    raise UnsupportedModelError(
        f"row {row} has {length} video tokens from position {start} on without 3-D (t, h, w) positions; pass the "
        "processor's `mm_token_type_ids` and `video_grid_thw` to generate or forward, or M-RoPE falls back to 1-D"
    )


def run_vision_tower(model: Any, patches: torch.Tensor, grid_thw: torch.Tensor) -> torch.Tensor:
    """Run the vision tower on the patches of one video or image.

    Args:
        patches: ``[t*h*w, 3*2*14*14]``, as transformers' processors give them.
        grid_thw: ``[1, 3]``: the grid in patches, before 2x2 of them become one token.

    Returns:
        ``[t, h/2, w/2, C]``.
    """
    side = model.config.vision_config.spatial_merge_size
    t, h, w = grid_thw[0].tolist()
    device = device_of(model.model.visual)
    (tokens,) = model.model.get_video_features(patches.to(device), grid_thw.to(device)).pooler_output
    return tokens.reshape(t, h // side, w // side, -1)


def _grid(feature: VisionFeatures) -> tuple[int, int, int]:
    t, h, w, _ = feature.tensor.shape
    return t, h, w


def _resize(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """``[T, H, W, 3]`` uint8 to another (height, width), bicubic with anti-aliasing."""
    from torchvision.transforms.functional import InterpolationMode, resize

    if frames.shape[1:3] == size:
        return frames
    small = np.empty((len(frames), *size, frames.shape[3]), np.uint8)
    # One plane at a time: torchvision computes in float32, and planes that lie together take half
    # the time.
    for frame, target in zip(frames, small, strict=True):
        for channel in range(frames.shape[3]):
            plane = torch.from_numpy(np.ascontiguousarray(frame[None, ..., channel]))
            target[..., channel] = resize(plane, list(size), InterpolationMode.BICUBIC, antialias=True)[0].numpy()
    return small
