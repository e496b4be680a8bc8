"""InternVL3 and InternVL3.5: frames of one square tile, numbered in the prompt, one position for
each token.

Sources: arXiv 2504.10479, arXiv 2508.18265; frames as in the model cards' ``load_video``: the
middles of equal parts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch

from sttm_lmms.families.frames import FrameFamily, numbered_frames
from sttm_lmms.types import VideoSpan, VisionFeatures

if TYPE_CHECKING:
    from sttm_lmms.video import VideoInfo, VideoSettings


def sample_middles(total_frames: int, count: int) -> list[int]:
    """Numbers of the frames in the middle of ``count`` equal parts of a video."""
    return [int((part + 0.5) * total_frames / count) for part in range(count)]


class InternVL(FrameFamily):
    """OpenGVLab/InternVL3-*-hf and InternVL3_5-*-HF."""

    name: ClassVar[str] = "internvl"
    architectures: ClassVar[Mapping[str, str]] = {"InternVLForConditionalGeneration": "hf"}
    model_types: ClassVar[tuple[str, ...]] = ("internvl",)
    fixed_suffix: ClassVar[str] = "</img>\n"

    def sample(self, info: VideoInfo, settings: VideoSettings) -> list[int]:
        """``settings.fps`` frames a second, at most ``max_frames``, in the middles of equal parts
        (or as ``sampling`` says)."""
        from sttm_lmms.video import frames_at, sample_uniform_fps

        if settings.sampling == "uniform_fps":
            return sample_uniform_fps(info, settings.fps, settings.max_frames)
        wanted = math.floor(info.total_frames / info.fps * settings.fps)
        count = max(1, min(wanted, settings.max_frames, info.total_frames))
        if info.times is None or count == info.total_frames:
            return sample_middles(info.total_frames, count)
        return frames_at(info, [(part + 0.5) * info.duration / count for part in range(count)])

    def tile_side(self, config: Any) -> int:
        return math.isqrt(config.image_seq_length)

    def encode(self, model: Any, tiles: torch.Tensor) -> torch.Tensor:
        return model.model.get_image_features(pixel_values=tiles).pooler_output

    def image_tiles(self, processor: Any, image: Any) -> tuple[torch.Tensor, dict[str, Any]]:
        """The whole image is the last tile."""
        batch = processor.image_processor(images=[image], crop_to_patches=True, return_tensors="pt")
        return batch["pixel_values"], {"image_size": [image.height, image.width]}

    def pad_token(self, processor: Any, kind: str) -> str:
        """Images and frames are marked by the same token."""
        return str(processor.image_token)

    def placeholder_text(self, processor: Any, feature: VisionFeatures) -> str:
        """``Frame1: <img>...</img>`` on a line for each frame; an image's tiles are one run."""
        tiles = len(feature.tensor)
        if feature.kind == "image":
            return str(processor.replace_image_token({"num_patches": [tiles]}, 0))
        return str(processor.replace_video_token({"pixel_values_videos": [torch.empty(tiles)]}, 0))

    def locate_spans(self, config: Any, input_ids: torch.Tensor, position_ids: torch.Tensor | None) -> list[VideoSpan]:
        """Runs of one tile each with headlines (``Frame1: <img>``, ``Frame2: <img>``) that count up
        from 1 behind the same word.

        Images have no such headline, and other labels (``Before:``, ``Image A:``, ``(1)``) make no
        video of them. A video of a single frame looks like an image to this method, and images of
        one tile that are numbered behind a word (``Photo 1:``) look like frames;
        ``reduce_tokens(..., spans=)`` tells them apart.
        """
        spans = numbered_frames(
            input_ids, config.image_token_id, self.tile_side(config), begins=_is_first, follows=_follows
        )
        return [span for span in spans if span.grid[0] > 1]


class _Headline(NamedTuple):
    """The tokens in front of a run of image tokens, taken apart at the last number among them."""

    word: list[int]
    number: int
    behind: list[int]


# Ids of the vocabularies of Qwen2 and Qwen3, which all checkpoints of this family have. Printable
# bytes come first and in order ("!" is 0, "0" is 15, "A" 32, "a" 64); the others are " ", line
# ends, " (", " [" and " #".
_DIGITS = range(15, 25)
_NO_WORD = {*range(32), *range(58, 64), *range(90, 94), 198, 220, 271, 320, 508, 624, 671}
_SPACE = 220
# "Frame" at the start of a line, and " Frame" behind a question that ends without one.
_FRAME, _SPACE_FRAME = 4369, 16321


def _numbered(headline: Sequence[int]) -> _Headline | None:
    """``</img>\nFrame12: <img>`` as the word, the number, and what stands behind it; None without such a number."""
    end = next((place for place in range(len(headline), 0, -1) if headline[place - 1] in _DIGITS), 0)
    start = end
    while start and headline[start - 1] in _DIGITS:
        start -= 1
    stop = start - 1 if start and headline[start - 1] == _SPACE else start
    begin = stop
    while begin and headline[begin - 1] not in _NO_WORD:
        begin -= 1
    word = [_FRAME if token == _SPACE_FRAME else token for token in headline[begin:stop]]
    if not word:
        return None
    number = int("".join(str(token - _DIGITS.start) for token in headline[start:end]))
    return _Headline(word, number, list(headline[end:]))


def _is_first(headline: Sequence[int]) -> bool:
    found = _numbered(headline)
    return found is not None and found.number == 1


def _follows(before: Sequence[int], headline: Sequence[int]) -> bool:
    """Whether ``headline`` is that of the next frame of the video of ``before``: the number is
    larger by one, and the word in front of it and everything behind it are the same."""
    last, new = _numbered(before), _numbered(headline)
    if last is None or new is None:
        return False
    return (new.word, new.number, new.behind) == (last.word, last.number + 1, last.behind)
