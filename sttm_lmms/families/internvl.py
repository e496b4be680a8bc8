"""InternVL3 and InternVL3.5: frames of one square tile, numbered in the prompt, one position for each token.

Sources: arXiv 2504.10479, arXiv 2508.18265; frames as in the model cards' ``load_video``: the middles of equal parts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from sttm_lmms.families.assemble import common_prefix, device_of
from sttm_lmms.families.base import frame_pixels, runs
from sttm_lmms.families.template import TemplateFamily
from sttm_lmms.types import VideoSpan, VisionFeatures

if TYPE_CHECKING:
    from sttm_lmms.video import Video, VideoInfo, VideoSettings

# Tiles that go through the vision tower at once: bounds its memory, changes nothing else.
_CHUNK = 16


def sample_middles(total_frames: int, count: int) -> list[int]:
    """Numbers of the frames in the middle of ``count`` equal parts of a video."""
    return [int((part + 0.5) * total_frames / count) for part in range(count)]


class InternVL(TemplateFamily):
    """OpenGVLab/InternVL3-*-hf and InternVL3_5-*-HF."""

    name: ClassVar[str] = "internvl"
    architectures: ClassVar[Mapping[str, str]] = {"InternVLForConditionalGeneration": "hf"}
    model_types: ClassVar[tuple[str, ...]] = ("internvl",)
    tail: ClassVar[str] = "</img>\n"

    def sample(self, info: VideoInfo, settings: VideoSettings) -> list[int]:
        """``settings.fps`` frames a second, at most ``max_frames``, in the middles of equal parts (or as ``sampling``
        says)."""
        from sttm_lmms.video import sample_uniform_fps

        if settings.sampling == "uniform_fps":
            return sample_uniform_fps(info, settings.fps, settings.max_frames)
        wanted = math.floor(info.total_frames / info.fps * settings.fps)
        return sample_middles(info.total_frames, max(1, min(wanted, settings.max_frames, info.total_frames)))

    def feature_shape(self, config: Any, info: VideoInfo, settings: VideoSettings) -> tuple[int, ...]:
        """``(T, H, W, C)``."""
        side = math.isqrt(config.image_seq_length)
        return len(self.sample(info, settings)), side, side, config.text_config.hidden_size

    @torch.no_grad()
    def vision_features(self, model: Any, processor: Any, visual: Any) -> VisionFeatures:
        """Projected tokens ``[T, H, W, C]``; an image has one T for each of its tiles, the whole image last."""
        if not hasattr(visual, "frames"):
            batch = processor.image_processor(images=[visual.convert("RGB")], crop_to_patches=True, return_tensors="pt")
            size = {"image_size": [visual.height, visual.width]}
            return VisionFeatures(run_vision_tower(model, batch["pixel_values"]), "image", size)
        video, pixels = self.video_chunks(processor, visual)
        chunks = [run_vision_tower(model, chunk) for chunk in pixels]
        return VisionFeatures(torch.cat(chunks), "video", {"video_sample_fps": float(video.sample_fps)})

    def chunks(self, processor: Any, video: Video) -> Iterator[torch.Tensor]:
        """Pixels ``[T, 3, S, S]``."""
        return frame_pixels(processor, video, _CHUNK)

    def pad(self, processor: Any, kind: str) -> str:
        """Images and frames are marked by the same token."""
        return str(processor.image_token)

    def write(self, processor: Any, feature: VisionFeatures) -> str:
        """``Frame1: <img>...</img>`` on a line for each frame; an image's tiles are one run."""
        tiles = len(feature.tensor)
        if feature.kind == "image":
            return str(processor.replace_image_token({"num_patches": [tiles]}, 0))
        return str(processor.replace_video_token({"pixel_values_videos": [torch.empty(tiles)]}, 0))

    def locate_spans(self, config: Any, input_ids: torch.Tensor, position_ids: torch.Tensor | None) -> list[VideoSpan]:
        """Runs of one tile each whose headlines (``Frame1: <img>``, ``Frame2: <img>``) differ in their number alone.

        Images have no such headline. A video of a single frame looks like an image to this method, and numbered images
        of one tile look like frames; ``reduce_tokens(..., spans=)`` tells them apart.
        """
        side = math.isqrt(config.image_seq_length)
        videos: list[_Frames] = []
        last: _Run | None = None
        for row, start, length in runs(input_ids == config.image_token_id):
            behind = last.end if last and last.row == row else 0
            run = _Run(row, start, length, input_ids[row, behind:start].tolist())
            if last and last.row == row and last.length == length == config.image_seq_length:
                open_video = videos[-1] if videos and videos[-1].runs[-1] is last else None
                if open_video and open_video.starts_again(run):
                    videos.append(_Frames([run], open_video.behind_number))
                elif behind_number := _follows(last.headline, run.headline):
                    if open_video:
                        open_video.runs.append(run)
                    else:
                        videos.append(_Frames([last, run], behind_number))
            last = run
        return [
            VideoSpan(
                frames.runs[0].start,
                (len(frames.runs), side, side),
                frames.runs[0].row,
                pieces=tuple((run.start, run.length) for run in frames.runs) if len(frames.runs) > 1 else None,
            )
            for frames in videos
        ]


@dataclass(frozen=True)
class _Run:
    """A run of image tokens, and the tokens between the one before (or the start of the row) and it."""

    row: int
    start: int
    length: int
    headline: list[int]

    @property
    def end(self) -> int:
        return self.start + self.length


@dataclass(frozen=True)
class _Frames:
    """The frames of a video so far. ``behind_number``: tokens behind the number in each headline (``: <img>``)."""

    runs: list[_Run]
    behind_number: int

    def starts_again(self, run: _Run) -> bool:
        """Whether the headline has the number of the first frame."""
        return _same_end(self.runs[0].headline, run.headline) >= self.behind_number + 2


# A number of frames has at most this many tokens.
_DIGITS = 5


def _same_end(one: Sequence[int], other: Sequence[int]) -> int:
    return common_prefix(one[::-1], other[::-1])


def _follows(before: Sequence[int], headline: Sequence[int]) -> int:
    """How many tokens stand behind the number if ``headline`` (``</img>\nFrame2: <img>``) is that of another frame of
    the video of ``before``; else 0.

    Both then end with the same two or more tokens (``: <img>``) behind a number that is not the same, and in front of
    the number at least one token (``Frame``) is the same again.
    """
    behind = _same_end(before, headline)
    if behind < 2 or behind == len(headline):
        return 0
    old, new = before[: len(before) - behind], headline[: len(headline) - behind]
    numbered = any(
        old[-a - 1] == new[-b - 1] for a in range(1, min(_DIGITS, len(old) - 1) + 1) for b in (a, a + 1) if b < len(new)
    )
    return behind if numbered else 0


def run_vision_tower(model: Any, tiles: torch.Tensor) -> torch.Tensor:
    """Projected tokens ``[N, H, W, C]`` of tiles ``[N, 3, S, S]``."""
    device = device_of(model.model.vision_tower)
    seen = torch.cat(
        [
            model.model.get_image_features(pixel_values=chunk.to(device, model.dtype)).pooler_output
            for chunk in tiles.split(_CHUNK)
        ]
    )
    side = math.isqrt(seen.shape[1])
    return seen.reshape(len(seen), side, side, -1)
