"""What a model would see of one video, from the file's header or from assumptions that are stated."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sttm_lmms.errors import VideoError
from sttm_lmms.families import get_family
from sttm_lmms.video import VideoInfo, VideoSettings, probe
from sttm_lmms.video.sizes import feature_shape

WIDTH, HEIGHT, FPS = 1280, 720, 30.0
"""Of a video that is not there."""


@dataclass(frozen=True)
class Sight:
    """One video as a model sees it.

    Attributes:
        info: the file, or what was assumed about it.
        assumed: why it had to be assumed; empty if the file was read.
        grid: (T, H, W) of the visual tokens.
        metadata: what the family's prompt may say about it.
    """

    info: VideoInfo
    assumed: str
    grid: tuple[int, int, int]
    metadata: dict[str, Any]


def sight_of(family: str, config: Any, path: Path | None, settings: VideoSettings) -> Sight:
    """The visual tokens of a video; of one that is not there, those of a video with ``max_frames`` frames."""
    info, assumed = _long_video(settings), "no video is known before the data are there"
    if path is not None:
        try:
            info, assumed = probe(path), ""
        except VideoError as error:
            assumed = str(error)
    return _sight(family, config, info, assumed, settings)


def longest(family: str, config: Any, sight: Sight, settings: VideoSettings) -> Sight:
    """The same kind of video, so long that ``max_frames`` are taken: what memory has to be there for."""
    info = _long_video(settings)
    info = replace(info, width=sight.info.width, height=sight.info.height)
    return _sight(family, config, info, sight.assumed, settings)


def _long_video(settings: VideoSettings) -> VideoInfo:
    seconds = math.ceil(settings.max_frames / settings.fps) + 2
    return VideoInfo("video.mp4", round(seconds * FPS), FPS, float(seconds), WIDTH, HEIGHT)


def _sight(family: str, config: Any, info: VideoInfo, assumed: str, settings: VideoSettings) -> Sight:
    shape = feature_shape(family, config, info, settings)
    if len(shape) == 4:  # in cells of the merged grid
        grid = (shape[0], shape[1], shape[2])
    else:
        side = math.ceil(math.isqrt(shape[1]) / 2)
        grid = (shape[0], side, side)
    indices = get_family(family).sample(info, settings)
    frames = len(indices)
    times = info.seconds(indices)
    metadata = {
        "vid": Path(info.path).stem,
        "video_time": info.duration,
        "frame_time": ",".join(f"{t:.2f}s" for t in times),
        "num_frames": frames,
        "video_sample_fps": frames / info.duration,
        "video_grid_thw": [grid[0], 2 * grid[1], 2 * grid[2]],
        "video_fps": info.fps if info.times is None else 1000.0,
        "frame_indices": indices if info.times is None else [round(1000 * t) for t in times],
    }
    return Sight(info, assumed, grid, metadata)
