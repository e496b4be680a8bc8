"""Facts about a video file and chosen frames of it, the same with every backend."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from sttm_lmms.errors import VideoError
from sttm_lmms.video.decord_reader import decode_decord, decord_available
from sttm_lmms.video.index import FrameIndex, build_index, open_video
from sttm_lmms.video.pyav_reader import decode_pyav
from sttm_lmms.video.sampling import frame_times
from sttm_lmms.video.settings import Video, VideoInfo, check_backend
from sttm_lmms.video.torchcodec_reader import decode_torchcodec, torchcodec_available

_Decoder = Callable[[str, FrameIndex, Sequence[int]], np.ndarray]
_DECODERS: dict[str, _Decoder] = {"torchcodec": decode_torchcodec, "decord": decode_decord, "pyav": decode_pyav}


def available_backends() -> list[str]:
    """The backends that can be used here, the one that ``"auto"`` takes first."""
    return [*["torchcodec"] * torchcodec_available(), *["decord"] * decord_available(), "pyav"]


def probe(path: str | Path, backend: str = "auto") -> VideoInfo:
    """Facts about a video file. All its packets are listed and one frame is decoded.

    PyAV does this whichever ``backend`` reads the frames later, so that frame numbers mean the same with all of them.

    Raises:
        ValueError: an unknown backend.
        VideoError: the file is missing, a folder, unreadable, empty, truncated, not a video, without a video stream
            or without frames.
    """
    check_backend(backend)
    container, stream = open_video(path)
    with container:
        index = build_index(path, container, stream)
        fps = float(stream.average_rate or stream.guessed_rate or 0)
    if fps <= 0:
        raise VideoError(path, "does not say how many frames a second it has", "re-encode it with a frame rate")
    height, width = decode_pyav(path, index, [0]).shape[1:3]
    total = len(index.pts)
    return VideoInfo(str(path), total, fps, total / fps, width, height, index)


def read_frames(video: str | Path | VideoInfo, indices: Sequence[int], backend: str = "auto") -> Video:
    """Decode the frames with these numbers, and only the stretches of the file that they need.

    Args:
        video: a file, or what :func:`probe` said about it, which saves looking at the file twice.
        indices: frame numbers in presentation order, 0-based, in any order, repeated or not.
        backend: ``"torchcodec"``, ``"decord"``, ``"pyav"`` or ``"auto"``, which is the first of them that is installed
            and can read this file. The frames are the same.

    Raises:
        VideoError: as :func:`probe`, or the backend cannot decode a frame.
        ValueError: no index, an index out of range, or an unknown or missing backend.
    """
    check_backend(backend)
    info = video if isinstance(video, VideoInfo) and video.index is not None else probe(_path(video))
    numbers = _check_indices(info, indices)
    unique, inverse = np.unique(numbers, return_inverse=True)
    frames = _decode(info, unique.tolist(), backend)
    if len(unique) != len(numbers) or numbers != unique.tolist():
        frames = frames[inverse]
    return Video(
        frames=frames,
        timestamps=frame_times(numbers, info.fps),
        indices=numbers,
        fps=info.fps,
        duration=info.duration,
        path=info.path,
        sample_fps=len(numbers) / info.duration,
    )


def _decode(info: VideoInfo, numbers: list[int], backend: str) -> np.ndarray:
    assert info.index is not None
    if backend == "auto":
        *others, last = available_backends()
        for name in others:
            try:
                return _DECODERS[name](info.path, info.index, numbers)
            except VideoError:
                continue
        return _DECODERS[last](info.path, info.index, numbers)
    if backend not in available_backends():
        needs = " and FFmpeg's shared libraries" if backend == "torchcodec" else ""
        raise ValueError(
            f"video_backend={backend!r} needs the package {backend}{needs}: pip install {backend}, or take 'pyav'"
        )
    return _DECODERS[backend](info.path, info.index, numbers)


def _path(video: str | Path | VideoInfo) -> str | Path:
    return video.path if isinstance(video, VideoInfo) else video


def _check_indices(info: VideoInfo, indices: Sequence[int]) -> list[int]:
    numbers = [operator.index(index) for index in indices]
    if not numbers:
        raise ValueError(f"{info.path}: no frame was asked for")
    for number in numbers:
        if not 0 <= number < info.total_frames:
            raise ValueError(f"{info.path}: frame {number} is out of range; it has frames 0 to {info.total_frames - 1}")
    return numbers
