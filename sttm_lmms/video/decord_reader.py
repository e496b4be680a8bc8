"""Decoding chosen frames with decord."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from sttm_lmms.errors import VideoError
from sttm_lmms.video.index import FrameIndex

_CHUNK = 16
_SEEKABLE = {"mp4", "matroska"}
_WAY_OUT = "read it with video_backend='pyav'"


def decord_available() -> bool:
    """Whether decord is installed."""
    return find_spec("decord") is not None


def decode_decord(path: str | Path, index: FrameIndex, numbers: Sequence[int]) -> np.ndarray:
    """Frames ``numbers`` (increasing, each once, in range) as uint8 ``[T, H, W, 3]`` RGB, rotated as the file asks.

    Raises:
        VideoError: decord cannot read the file, is known to give other frames than those asked for (AVI, MPEG-TS,
            open GOPs), or counts its frames differently (edit lists).
    """
    import decord

    if not _SEEKABLE & set(index.container.split(",")):
        raise VideoError(path, f"decord does not find frames reliably in {index.container} files", _WAY_OUT)
    if index.open_gop:
        raise VideoError(path, "decord does not find frames reliably where GOPs are open", _WAY_OUT)
    frames: np.ndarray | None = None
    with _quiet(decord):
        try:
            reader = decord.VideoReader(str(path), ctx=decord.cpu(0))
            if len(reader) != len(index.pts):
                raise VideoError(path, f"decord counts {len(reader)} frames where {len(index.pts)} are shown", _WAY_OUT)
            for start in range(0, len(numbers), _CHUNK):  # a copy is made of each batch, so batches stay small
                batch = reader.get_batch(list(numbers[start : start + _CHUNK]))
                array = batch.asnumpy() if hasattr(batch, "asnumpy") else np.asarray(batch)
                if frames is None:
                    frames = np.empty((len(numbers), *array.shape[1:]), np.uint8)
                frames[start : start + len(array)] = array
        except (decord.DECORDError, RuntimeError, IndexError) as error:
            raise VideoError(path, f"decord cannot read it ({str(error).splitlines()[0]})", _WAY_OUT) from error
    assert frames is not None
    return frames


@contextmanager
def _quiet(decord: object) -> Iterator[None]:
    """decord's decoder writes warnings about frames that it drops after a seek straight to stderr."""
    from decord import logging

    logging.set_level(logging.QUIET)
    try:
        yield
    finally:
        logging.set_level(logging.ERROR)
