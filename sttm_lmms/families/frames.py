"""What families share that see a video as single square frames, each between text of its own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sttm_lmms.families.assemble import device_of
from sttm_lmms.families.base import frame_pixels, runs
from sttm_lmms.families.template import TemplateFamily
from sttm_lmms.types import VideoSpan, VisionFeatures

if TYPE_CHECKING:
    from sttm_lmms.video import Video, VideoInfo, VideoSettings

# Tiles that go through the vision tower at once: bounds its memory, changes nothing else.
_CHUNK = 16


class FrameFamily(TemplateFamily):
    """Every frame is one square tile of as many tokens; large images are several tiles."""

    @abstractmethod
    def tile_side(self, config: Any) -> int:
        """Tokens along one side of a tile, from the model's ``config``."""

    @abstractmethod
    def encode(self, model: Any, tiles: torch.Tensor) -> torch.Tensor:
        """Projected tokens of tiles ``[N, 3, S, S]``: ``[N, H, W, C]`` or any shape that flattens
        to it."""

    @abstractmethod
    def image_tiles(self, processor: Any, image: Any) -> tuple[torch.Tensor, dict[str, Any]]:
        """Tiles ``[N, 3, S, S]`` of a PIL image, and the plain values that its text depends on."""

    def video_metadata(self, video: Video) -> dict[str, Any]:
        """The plain values that the text of a video's frames depends on."""
        return {"video_sample_fps": float(video.sample_fps)}

    def feature_shape(self, config: Any, info: VideoInfo, settings: VideoSettings) -> tuple[int, ...]:
        """``(T, H, W, C)``."""
        side = self.tile_side(config)
        return len(self.sample(info, settings)), side, side, config.text_config.hidden_size

    @torch.no_grad()
    def vision_features(
        self, model: Any, processor: Any, visual: Any, chunks: Iterable[Any] | None = None
    ) -> VisionFeatures:
        """Projected tokens ``[T, H, W, C]``; an image has one T for each of its tiles."""
        if not hasattr(visual, "frames"):
            tiles, metadata = self.image_tiles(processor, visual.convert("RGB"))
            return VisionFeatures(self._run_tower(model, tiles), "image", metadata)
        pixels = self.chunks(processor, visual) if chunks is None else chunks
        features = [self._run_tower(model, chunk) for chunk in pixels]
        return VisionFeatures(torch.cat(features), "video", self.video_metadata(visual))

    def chunks(self, processor: Any, video: Video) -> Iterator[torch.Tensor]:
        """Pixels ``[T, 3, S, S]``."""
        return frame_pixels(processor, video, _CHUNK)

    def _run_tower(self, model: Any, tiles: torch.Tensor) -> torch.Tensor:
        """``[N, H, W, C]`` of tiles ``[N, 3, S, S]``."""
        device, side = device_of(self.tower(model)), self.tile_side(model.config)
        seen = [self.encode(model, chunk.to(device, model.dtype)) for chunk in tiles.split(_CHUNK)]
        return torch.cat(seen).reshape(len(tiles), side, side, -1)


@dataclass(frozen=True)
class Tile:
    """A run of visual tokens in ``input_ids``; ``headline`` is what stands between it and the run
    before."""

    row: int
    start: int
    length: int
    headline: list[int]

    @property
    def end(self) -> int:
        return self.start + self.length


def numbered_frames(
    input_ids: torch.Tensor,
    token: int,
    side: int,
    *,
    begins: Callable[[list[int]], bool],
    follows: Callable[[list[int], list[int]], bool],
) -> list[VideoSpan]:
    """Videos whose frames are marked by the same ``token`` as images and told apart by their text.

    Args:
        input_ids: ``[B, L]``.
        side: tokens along one side of a frame.
        begins: whether a headline is that of a video's first frame.
        follows: whether the second headline is that of the frame behind the first one's.
    """
    videos: list[list[Tile]] = []
    last: Tile | None = None
    for row, start, length in runs(input_ids == token):
        behind = last.end if last and last.row == row else 0
        tile = Tile(row, start, length, input_ids[row, behind:start].tolist())
        if length == side * side:
            before = last if last and last.row == row and videos and videos[-1][-1] is last else None
            if before and follows(before.headline, tile.headline):
                videos[-1].append(tile)
            elif begins(tile.headline):
                videos.append([tile])
        last = tile
    return [
        VideoSpan(
            frames[0].start,
            (len(frames), side, side),
            frames[0].row,
            pieces=tuple((frame.start, frame.length) for frame in frames) if len(frames) > 1 else None,
        )
        for frames in videos
    ]
