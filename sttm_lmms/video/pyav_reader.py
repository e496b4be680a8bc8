"""Decoding chosen frames with PyAV: seek to the key frame before each, decode only from there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import av
import numpy as np

from sttm_lmms.errors import VideoError
from sttm_lmms.video.index import FrameIndex, open_video

_BT601 = 5


def decode_pyav(path: str | Path, index: FrameIndex, numbers: Sequence[int]) -> np.ndarray:
    """Frames ``numbers`` (increasing, each once, in range) as uint8 ``[T, H, W, 3]`` RGB, rotated as the file asks.

    Raises:
        VideoError: a frame cannot be decoded.
    """
    frames: np.ndarray | None = None
    cursor = FrameCursor(path, index)
    try:
        for row, number in enumerate(numbers):
            frame = cursor.frame_at(int(index.pts[number]))
            if frame is None:
                raise VideoError(path, f"frame {number} cannot be decoded", "copy or download it again")
            image = to_rgb(frame, frames)
            if frames is None:
                frames = np.empty((len(numbers), *image.shape), np.uint8)
            frames[row] = image
    except av.FFmpegError as error:
        raise VideoError(path, f"cannot be decoded ({error.strerror})", "copy or download it again") from error
    finally:
        cursor.close()
    assert frames is not None
    return frames


def to_rgb(frame: av.VideoFrame, like: np.ndarray | None = None) -> np.ndarray:
    """One decoded frame as uint8 ``[H, W, 3]``, in the size of ``like`` ``[T, H, W, 3]`` where that is given.

    The matrix and the range that the file names are honoured, with bilinear chroma: exactly decord's conversion.
    """
    turns = round(frame.rotation / 90) % 4
    height, width = (frame.height, frame.width) if like is None else like.shape[1:3]
    if turns % 2 and like is not None:
        height, width = width, height
    rgb = frame.reformat(
        width=width,
        height=height,
        format="rgb24",
        src_colorspace=int(frame.colorspace),
        dst_colorspace=_BT601,
        src_color_range=int(frame.color_range),
        dst_color_range=0,
        interpolation="BILINEAR",
    )
    return np.rot90(rgb.to_ndarray(), turns)


class FrameCursor:
    """A place in the file that moves forward by decoding and jumps where that skips something.

    Attributes:
        packets: packets decoded so far.
    """

    def __init__(self, path: str | Path, index: FrameIndex) -> None:
        self.packets = 0
        self._path, self._index = path, index
        self._container, self._stream = open_video(path)
        self._frames: Iterator[av.VideoFrame] = iter(())
        self._shown: int | None = None
        self._current: av.VideoFrame | None = None

    def close(self) -> None:
        self._container.close()

    def frame_at(self, pts: int) -> av.VideoFrame | None:
        """The frame shown at ``pts``; the next one where that frame is never shown; None at the end of the file."""
        key = self._index.key_before(pts)
        if self._shown is None or self._index.keys[key] > self._shown:
            self._seek(key)
        frame = self._advance(pts)
        if (frame is None or frame.pts != pts) and key > 0:
            # Some encoders mark frames as key frames that need a few frames more before the picture is whole.
            self._seek(key - 1)
            frame = self._advance(pts)
        return frame

    def _advance(self, pts: int) -> av.VideoFrame | None:
        while self._shown is None or self._shown < pts:
            self._current = next(self._frames, None)
            if self._current is None:
                return None
            if self._current.pts is not None:
                self._shown = self._current.pts
        return self._current

    def _seek(self, key: int) -> None:
        """Start decoding at key frame ``key``, or at an earlier one where the container cannot seek that precisely."""
        wanted = int(self._index.keys[key])
        for earlier in range(key, 0, -1):
            self._container.seek(int(self._index.keys[earlier]), stream=self._stream)
            packets = self._container.demux(self._stream)
            first = next(packets)
            if first.size and (first.pts is None or first.pts <= wanted):
                break
        else:
            self._container.close()
            self._container, self._stream = open_video(self._path)
            packets = self._container.demux(self._stream)
            first = next(packets)
        self._shown = self._current = None
        self._frames = self._decode(chain([first], packets))

    def _decode(self, packets: Iterable[av.Packet]) -> Iterator[av.VideoFrame]:
        for packet in packets:
            self.packets += 1
            yield from self._stream.decode(packet)
