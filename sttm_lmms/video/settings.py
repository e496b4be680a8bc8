"""What a video is to this package: settings for reading, facts about a file, and decoded frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sttm_lmms.config import check_integer, check_number
from sttm_lmms.errors import unknown
from sttm_lmms.video.index import FrameIndex

SAMPLINGS = ("model", "uniform_fps")
"""``model`` takes the frames that the model's own code takes, ``uniform_fps`` those of the
published runs: one rule for all families (:func:`~sttm_lmms.video.sample_uniform_fps`), which is
LLaVA's own."""

VIDEO_BACKENDS = ("auto", "pyav", "torchcodec", "decord")
"""``auto`` is PyAV; the others give the same frames, refuse more files, and are not quicker."""

ONE_TOKEN = 28 * 28
"""Pixels that the smallest visual token stands for: no frame can be smaller."""

TIMEOUT = 120.0
"""Seconds after which a video is given up unless somebody says another limit."""


def check_backend(name: str) -> None:
    """Raise ``ValueError`` with the closest name and the list unless ``name`` is a known
    backend."""
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
        min_pixels: least pixels of a resized frame (Qwen families only); None is the family's
            default.
        max_pixels: most pixels of a resized frame, at least :data:`ONE_TOKEN` (Qwen families only);
            None is the family's default.
        phase: frames are taken this share of a step later, in [0, 1): how much answers hang on
            which frames were looked at.

    Raises:
        ValueError: a value is out of range, or the backend is unknown.
    """

    max_frames: int = 128
    fps: float = 1.0
    backend: str = "auto"
    min_pixels: int | None = None
    max_pixels: int | None = None
    sampling: str = "model"
    timeout: float = TIMEOUT
    phase: float = 0.0

    def __post_init__(self) -> None:
        check_integer("max_frames", self.max_frames, 1)
        check_number("fps", self.fps, 0.0, 1000.0, low_open=True)
        check_backend(self.backend)
        check_number("video_timeout", self.timeout, 0.0, 1e6)
        check_number("phase", self.phase, 0.0, 0.999)
        if self.sampling not in SAMPLINGS:
            raise unknown("sampling", self.sampling, SAMPLINGS)
        for name in ("min_pixels", "max_pixels"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), ONE_TOKEN if name == "max_pixels" else 1)
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels={self.min_pixels} is more than max_pixels={self.max_pixels}")


@dataclass(frozen=True)
class VideoInfo:
    """Facts about a video file.

    Attributes:
        path: the file.
        total_frames: frames that are shown, in presentation order.
        fps: average frames per second: as the file names it where it is constant, else
            ``total_frames / duration``.
        duration: seconds from the first frame to the end of the last one.
        width: pixels, after the rotation that the file asks for.
        height: pixels, after the rotation that the file asks for.
        index: where its frames are; None in an object that was not made by
            :func:`~sttm_lmms.video.probe`.
    """

    path: str
    total_frames: int
    fps: float
    duration: float
    width: int
    height: int
    index: FrameIndex | None = field(default=None, repr=False, compare=False)

    @property
    def times(self) -> np.ndarray | None:
        """Seconds ``[N]`` at which each frame is shown, from 0 on; None where that is its number /
        :attr:`fps`."""
        return None if self.index is None or self.index.constant_rate else self.index.times

    def seconds(self, numbers: Sequence[int]) -> list[float]:
        """When these frames are shown, from the first frame on."""
        times = self.times
        return [number / self.fps for number in numbers] if times is None else times[list(numbers)].tolist()


@dataclass(frozen=True)
class Video:
    """Frames taken from a file.

    Attributes:
        frames: ``[T, H, W, 3]`` uint8 RGB.
        timestamps: seconds ``[T]`` from the first frame of the file to each of these: with a
            constant frame rate its number / ``fps``, as the published pipeline counts them.
        indices: frame numbers ``[T]`` in presentation order, starting at 0.
        fps: average frames per second of the file.
        duration: seconds of the file.
        path: the file.
        sample_fps: frames taken per second of video, ``T / duration``, the name that qwen-vl-utils
            has for it.
        constant_rate: whether ``timestamps`` are ``indices / fps``.
    """

    frames: np.ndarray
    timestamps: list[float]
    indices: list[int]
    fps: float
    duration: float
    path: str
    sample_fps: float
    constant_rate: bool = True
