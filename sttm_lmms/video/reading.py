"""Facts about a video file and chosen frames of it, the same with every backend."""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from sttm_lmms.video.child_reader import is_available, read_in_child
from sttm_lmms.video.deadline import Deadline
from sttm_lmms.video.index import FrameIndex, build_index
from sttm_lmms.video.pictures import Resize, index_webp, is_webp, read_webp, stack_frames
from sttm_lmms.video.pyav_reader import read_pyav
from sttm_lmms.video.settings import TIMEOUT, Video, VideoInfo, check_backend

logger = logging.getLogger(__name__)

Reader = Callable[[str, FrameIndex, Sequence[int], Deadline], Iterator[tuple[np.ndarray, bool]]]
"""The chosen frames of a file (increasing numbers, each once, in range) as uint8 ``[H, W, 3]`` of
one size, and whether each is that very picture or stands in for one that cannot be decoded."""


def available_backends() -> list[str]:
    """The backends that can be used here, the one that ``"auto"`` takes first."""
    return ["pyav", *(name for name in ("torchcodec", "decord") if is_available(name))]


def probe(path: str | Path, backend: str = "auto", *, timeout: float = TIMEOUT) -> VideoInfo:
    """Facts about a video file. All its packets are listed and one frame is decoded.

    PyAV does this whichever ``backend`` reads the frames later, so that frame numbers mean the same
    with all of them.

    Args:
        timeout: seconds after which a file is given up; 0 is no limit.

    Raises:
        ValueError: an unknown backend.
        VideoError: the file is missing, a folder, unreadable, empty, truncated, not a video,
            without a video stream or without frames, or takes too long.
    """
    check_backend(backend)
    deadline = Deadline(timeout)
    return deadline.run(path, partial(_probe, path, deadline))


def _probe(path: str | Path, deadline: Deadline) -> VideoInfo:
    index = index_webp(path) if is_webp(path) else build_index(path, deadline)
    total = len(index.pts)
    if index.constant_rate:
        fps, duration = index.rate, total / index.rate
    else:
        duration = float(index.times[-1]) + index.last_seconds
        fps = total / duration
    # The size as it is shown: how a file is rotated stands in its frames.
    first, _ = next(_reader("pyav", index)(str(path), index, [0], deadline))
    return VideoInfo(str(path), total, fps, duration, first.shape[1], first.shape[0], index)


def read_frames(
    video: str | Path | VideoInfo,
    indices: Sequence[int],
    backend: str = "auto",
    *,
    resize: Callable[[int, int], Resize | None] | None = None,
    timeout: float = TIMEOUT,
) -> Video:
    """Decode the frames with these numbers, and only the stretches of the file that they need.

    Args:
        video: a file, or what :func:`probe` said about it, which saves looking at the file twice.
        indices: frame numbers in presentation order, 0-based, in any order, repeated or not.
        backend: ``"pyav"``, which ``"auto"`` is; ``"torchcodec"`` or ``"decord"``. The frames are
            the same.
        resize: from height and width to a function that makes uint8 ``[n, H, W, 3]`` smaller, or to
            None where they stay. A few frames at a time are resized as they are read, so that the
            large ones are never all there.
        timeout: seconds after which a file is given up; 0 is no limit.

    Raises:
        VideoError: as :func:`probe`, or the backend cannot decode the frames.
        ValueError: no index, an index out of range, or an unknown or missing backend.
    """
    check_backend(backend)
    info = video if isinstance(video, VideoInfo) and video.index is not None else probe(_path(video), timeout=timeout)
    assert info.index is not None
    numbers = _check_indices(info, indices)
    # Readers go through the file once, forwards; the frames are put into the caller's order below.
    unique, inverse = np.unique(numbers, return_inverse=True)
    deadline = Deadline(timeout)
    read = _reader(backend, info.index)(info.path, info.index, unique.tolist(), deadline)
    exact: list[bool] = []
    images = _noting(deadline.iterate(info.path, read), exact)
    frames = stack_frames(info.path, images, len(unique), resize, deadline)
    _warn(info, len(unique) - sum(exact), len(unique))
    if len(unique) != len(numbers) or numbers != unique.tolist():
        frames = frames[inverse]
    return Video(
        frames=frames,
        timestamps=info.seconds(numbers),
        indices=numbers,
        fps=info.fps,
        duration=info.duration,
        path=info.path,
        sample_fps=len(numbers) / info.duration,
        constant_rate=info.index.constant_rate,
    )


def _reader(backend: str, index: FrameIndex) -> Reader:
    if index.container == "webp":
        return read_webp
    if backend in ("auto", "pyav") or index.hidden:  # hidden frames are where decord never comes back
        return read_pyav
    if not is_available(backend):
        raise ValueError(
            f"video_backend={backend!r} needs the package {backend}: pip install {backend}, or take 'pyav'"
        )
    return partial(read_in_child, backend)


def _noting(images: Iterator[tuple[np.ndarray, bool]], exact: list[bool]) -> Iterator[np.ndarray]:
    for image, is_exact in images:
        exact.append(is_exact)
        yield image


def _warn(info: VideoInfo, missing: int, total: int) -> None:
    """One line for a damaged file."""
    assert info.index is not None
    if missing:
        logger.warning(
            "%s: %d of the %d frames asked for cannot be decoded; the picture before each is taken instead",
            *(info.path, missing, total),
        )
    elif info.index.counted:
        logger.warning("%s: all of it was decoded to count its frames, because %s", info.path, info.index.counted)


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
