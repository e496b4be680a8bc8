"""Facts about a video file and chosen frames of it, the same with every backend."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sttm_lmms.errors import VideoError
from sttm_lmms.video.decord_reader import decode_decord, decord_available
from sttm_lmms.video.index import build_index, open_video
from sttm_lmms.video.pyav_reader import decode_pyav
from sttm_lmms.video.sampling import frame_times
from sttm_lmms.video.settings import Video, VideoInfo, check_backend


def available_backends() -> list[str]:
    """The backends that can be used here, the one that ``"auto"`` takes first."""
    return ["decord", "pyav"] if decord_available() else ["pyav"]


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
        backend: ``"decord"``, ``"pyav"`` or ``"auto"``, which is decord where it is installed and can read this file,
            and PyAV otherwise. The frames are the same.

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
    if backend == "decord" and not decord_available():
        raise ValueError("video_backend='decord' needs the package decord: pip install decord, or take 'pyav'")
    if backend == "pyav" or not decord_available():
        return decode_pyav(info.path, info.index, numbers)
    try:
        return decode_decord(info.path, info.index, numbers)
    except VideoError:
        if backend == "decord":
            raise
        return decode_pyav(info.path, info.index, numbers)


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
