"""What a video is to this package: settings for reading, facts about a file, and decoded frames."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from sttm_lmms.config import check_integer, check_number
from sttm_lmms.errors import unknown
from sttm_lmms.video.index import FrameIndex

SAMPLINGS = ("model", "uniform_fps")
"""``model`` takes the frames that the model's own code takes, ``uniform_fps`` those of the published runs: one rule for
all families (:func:`~sttm_lmms.video.sample_uniform_fps`), which is LLaVA's own."""

VIDEO_BACKENDS = ("auto", "torchcodec", "decord", "pyav")
"""``auto`` takes the first of the others that can be imported and reads the file; PyAV always can be."""


def check_backend(name: str) -> None:
    """Raise ``ValueError`` with the closest name and the list unless ``name`` is a known backend."""
    if name not in VIDEO_BACKENDS:
        raise unknown("video_backend", name, VIDEO_BACKENDS)


@dataclass(frozen=True)
class VideoSettings:
    """How many frames are taken from a video, and how.

    Attributes:
        max_frames: most frames taken from one video.
        fps: frames sampled per second of video, as long as that gives no more than ``max_frames``.
        backend: one of :data:`VIDEO_BACKENDS`.
        sampling: one of :data:`SAMPLINGS`.
        min_pixels: least pixels of a resized frame (Qwen families only); None is the family's default.
        max_pixels: most pixels of a resized frame (Qwen families only); None is the family's default.

    Raises:
        ValueError: a value is out of range, or the backend is unknown.
    """

    max_frames: int = 128
    fps: float = 1.0
    backend: str = "auto"
    min_pixels: int | None = None
    max_pixels: int | None = None
    sampling: str = "model"

    def __post_init__(self) -> None:
        check_integer("max_frames", self.max_frames, 1)
        check_number("fps", self.fps, 0.0, 1000.0, low_open=True)
        check_backend(self.backend)
        if self.sampling not in SAMPLINGS:
            raise unknown("sampling", self.sampling, SAMPLINGS)
        for name in ("min_pixels", "max_pixels"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), 1)
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels={self.min_pixels} is more than max_pixels={self.max_pixels}")


@dataclass(frozen=True)
class VideoInfo:
    """Facts about a video file.

    Attributes:
        path: the file.
        total_frames: frames that are shown, in presentation order.
        fps: average frames per second.
        duration: seconds: ``total_frames / fps``.
        width: pixels, after the rotation that the file asks for.
        height: pixels, after the rotation that the file asks for.
        index: where its frames are; None in an object that was not made by :func:`~sttm_lmms.video.probe`.
    """

    path: str
    total_frames: int
    fps: float
    duration: float
    width: int
    height: int
    index: FrameIndex | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Video:
    """Frames taken from a file.

    Attributes:
        frames: ``[T, H, W, 3]`` uint8 RGB.
        timestamps: seconds ``[T]``: index / average fps, as the published pipeline counts them. With a variable frame
            rate that is not the time at which the file shows the frame.
        indices: frame numbers ``[T]`` in presentation order, starting at 0.
        fps: average frames per second of the file.
        duration: seconds of the file.
        path: the file.
        sample_fps: frames taken per second of video, ``T / duration``, the name that qwen-vl-utils has for it.
    """

    frames: np.ndarray
    timestamps: list[float]
    indices: list[int]
    fps: float
    duration: float
    path: str
    sample_fps: float
