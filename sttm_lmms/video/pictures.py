"""Videos that are no video file: frames that somebody has decoded already, pictures in files,
animated pictures."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from sttm_lmms.errors import VideoError
from sttm_lmms.video.deadline import Deadline
from sttm_lmms.video.index import FrameIndex
from sttm_lmms.video.settings import Video

Resize = Callable[[np.ndarray], np.ndarray]
"""uint8 ``[n, H, W, 3]`` in another size."""

_WHAT = (
    "a video is a file, a folder of pictures, a list of pictures (files or PIL images) of one size, or uint8 frames "
    "[T, H, W, 3] or [T, 3, H, W]"
)
# Frames are resized in chunks of about so many bytes.
_CHUNK_BYTES = 16 << 20


def picture_files(folder: str | Path) -> list[Path]:
    """The pictures in a folder in the order of their names, in which numbers count as numbers: 2
    before 10.

    Raises:
        VideoError: there are none.
    """
    known = Image.registered_extensions()
    files = [path for path in Path(folder).iterdir() if path.suffix.lower() in known and not path.name.startswith(".")]
    if not files:
        raise VideoError(folder, "is a folder without pictures", "give a video file, or a folder of its frames")
    return sorted(files, key=_by_number)


def _by_number(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def video_of_frames(
    source: Any,
    fps: float,
    *,
    max_frames: int | None = None,
    resize: Callable[[int, int, int], Resize | None] | None = None,
) -> Video:
    """Frames that are there already as a :class:`Video` of ``fps`` frames a second.

    Args:
        source: a folder of pictures; a list of picture files or PIL images of one size; or a uint8
            array or tensor ``[T, H, W, 3]`` or ``[T, 3, H, W]``.
        fps: how many of them make a second.
        max_frames: of more pictures in files than that, so many are taken, evenly spread.
        resize: from number, height and width of the frames to a :data:`Resize`, or to None where
            they stay.

    Raises:
        VideoError: no frames, frames of different sizes, or not frames at all.
    """
    path = "frames"
    if isinstance(source, (str, Path)):
        path, source = str(source), picture_files(source)
    numbers = list(range(len(source))) if hasattr(source, "__len__") else []
    if isinstance(source, (list, tuple)) and source and all(isinstance(one, (str, Path)) for one in source):
        if max_frames and len(source) > max_frames:
            numbers = np.linspace(0, len(source) - 1, max_frames).astype(int).tolist()
        images: Iterable[np.ndarray] = (_open_picture(source[number]) for number in numbers)
    elif isinstance(source, (list, tuple)) and source and all(hasattr(one, "convert") for one in source):
        if len(sizes := {one.size for one in source}) > 1:
            raise VideoError(path, f"the images have {len(sizes)} sizes: {sorted(sizes)[:4]}", _WHAT)
        images = (np.array(one.convert("RGB")) for one in source)
    else:
        images = _array(source)
    frames = stack_frames(path, images, len(numbers), partial(resize, len(numbers)) if resize else None)
    return Video(
        frames=frames,
        timestamps=[number / fps for number in numbers],
        indices=numbers,
        fps=fps,
        duration=len(source) / fps,
        path=path,
        sample_fps=fps * len(numbers) / len(source),
    )


def stack_frames(
    path: str,
    images: Iterable[np.ndarray],
    total: int,
    resize: Callable[[int, int], Resize | None] | None = None,
    deadline: Deadline | None = None,
) -> np.ndarray:
    """uint8 ``[T, h, w, 3]`` of images ``[H, W, 3]``, made small a few at a time.

    Args:
        total: number of images.
        resize: from height and width to a :data:`Resize`, or to None where they stay.
        deadline: does not go on while frames are resized.

    Raises:
        VideoError: images of different sizes, or of a size that ``resize`` refuses with
            ``ValueError``.
    """
    frames: np.ndarray | None = None
    chunk: list[np.ndarray] = []
    done, size, shrink = 0, None, None
    for image in images:
        if size is None:
            size = image.shape[:2]
            try:
                shrink = resize(*size) if resize is not None else None
            except ValueError as error:
                raise VideoError(path, str(error), "crop the video") from error
        if image.shape[:2] != size:
            raise VideoError(path, f"holds pictures of several sizes: {size} and {image.shape[:2]}", _WHAT)
        chunk.append(image)
        if shrink is not None and done + len(chunk) < total and len(chunk) * image.nbytes < _CHUNK_BYTES:
            continue
        with deadline.paused() if deadline else nullcontext():
            part = np.stack(chunk) if len(chunk) > 1 else chunk[0][None]
            part = part if shrink is None else shrink(part)
        if frames is None:
            frames = np.empty((total, *part.shape[1:]), np.uint8)
        frames[done : done + len(part)] = part
        done += len(part)
        chunk = []
    if frames is None:
        raise VideoError(path, "holds no frames", _WHAT)
    return frames


def _open_picture(path: str | Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise VideoError(path, f"not a picture ({error})", "copy or download it again") from error


def _array(source: Any) -> np.ndarray:
    array = source.cpu().numpy() if hasattr(source, "cpu") else np.asarray(source)
    if array.ndim == 4 and array.shape[1] == 3 and array.shape[3] != 3:
        array = array.transpose(0, 2, 3, 1)
    if array.ndim != 4 or array.shape[3] != 3 or array.dtype != np.uint8 or not array.size:
        raise VideoError("frames", f"{type(source).__name__} of shape {array.shape} and type {array.dtype}", _WHAT)
    return array


def is_animated(path: str | Path) -> bool:
    """Whether a file is a picture that moves: GIF, WebP or PNG of several frames."""
    try:
        with Image.open(path) as image:
            return getattr(image, "n_frames", 1) > 1
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False


def is_webp(path: str | Path) -> bool:
    """Whether a file is a WebP picture, which libav reads only where it stands still."""
    path = Path(path)
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(12)
    return head[:4] == b"RIFF" and head[8:] == b"WEBP"


def index_webp(path: str | Path) -> FrameIndex:
    """The frame index of an animated WebP picture.

    Raises:
        VideoError: it is broken, or stands still.
    """
    if not is_animated(path):
        raise VideoError(path, "not a video (it is a picture)", "give a video file such as mp4 or mkv")
    seconds = []
    with Image.open(path) as image:
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            image.load()  # the duration is known only then
            seconds.append(max(image.info.get("duration", 0), 10) / 1000)
    times = np.concatenate([[0.0], np.cumsum(seconds[:-1])])
    numbers = np.arange(len(seconds))
    return FrameIndex(numbers, times, seconds[-1], len(seconds) / sum(seconds), numbers[:1], "webp")


def read_webp(
    path: str | Path, index: FrameIndex, numbers: Sequence[int], deadline: Deadline
) -> Iterator[tuple[np.ndarray, bool]]:
    """Frames of an animated WebP picture, as :func:`~sttm_lmms.video.pyav_reader.read_pyav` gives
    those of a video."""
    with Image.open(path) as image:
        for number in numbers:
            deadline.check(path)
            image.seek(number)
            yield np.array(image.convert("RGB")), True
