"""Decoding chosen frames with torchcodec, the decoder that PyTorch keeps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from sttm_lmms.errors import VideoError
from sttm_lmms.video.index import FrameIndex

_CHUNK = 16
_CONTAINERS = {"mp4", "matroska"}
_PIXELS = ("yuv420p", "yuvj420p", "yuv444p")
"""Pixel formats whose frames have the same bytes as PyAV's."""
_WAY_OUT = "read it with video_backend='pyav'"


@lru_cache
def torchcodec_available() -> bool:
    """Whether torchcodec is installed and finds the FFmpeg libraries that it needs."""
    if find_spec("torchcodec") is None:
        return False
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, OSError, RuntimeError):
        return False
    return True


def decode_torchcodec(path: str | Path, index: FrameIndex, numbers: Sequence[int]) -> np.ndarray:
    """Frames ``numbers`` (increasing, each once, in range) as uint8 ``[T, H, W, 3]`` RGB, rotated as the file asks.

    Raises:
        VideoError: torchcodec cannot read the file, or is known to give other frames (AVI, MPEG-TS, open GOPs) or other
            colours (more than 8 bits, subsampled chroma in odd sizes) than PyAV.
    """
    from torchcodec.decoders import VideoDecoder

    if not _CONTAINERS & set(index.container.split(",")):
        raise VideoError(path, f"torchcodec does not find frames reliably in {index.container} files", _WAY_OUT)
    if index.open_gop:
        raise VideoError(path, "torchcodec does not find frames reliably where GOPs are open", _WAY_OUT)
    frames: np.ndarray | None = None
    try:
        decoder = VideoDecoder(str(path), dimension_order="NHWC", seek_mode="exact")
        facts = decoder.metadata
        if len(decoder) != len(index.pts):
            raise VideoError(
                path, f"torchcodec counts {len(decoder)} frames where {len(index.pts)} are shown", _WAY_OUT
            )
        _check_colours(path, getattr(facts, "pixel_format", None), facts.width, facts.height)
        for start in range(0, len(numbers), _CHUNK):  # a copy is made of each batch, so batches stay small
            batch = decoder.get_frames_at(list(numbers[start : start + _CHUNK])).data.numpy()
            if frames is None:
                frames = np.empty((len(numbers), *batch.shape[1:]), np.uint8)
            frames[start : start + len(batch)] = batch
    except (RuntimeError, ValueError, IndexError) as error:
        raise VideoError(path, f"torchcodec cannot read it ({str(error).splitlines()[0]})", _WAY_OUT) from error
    assert frames is not None
    return frames


def _check_colours(path: str | Path, pixels: str | None, width: int, height: int) -> None:
    if pixels not in _PIXELS:
        raise VideoError(path, f"torchcodec is not known to give the same colours for {pixels}", _WAY_OUT)
    if "444" not in pixels and (width % 2 or height % 2):
        raise VideoError(path, f"torchcodec gives other colours for {width}x{height} {pixels}", _WAY_OUT)
