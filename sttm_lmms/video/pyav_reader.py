"""Decoding chosen frames with PyAV: seek to the key frame before each, decode only from there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type

from sttm_lmms.errors import VideoError
from sttm_lmms.video.container import COPY_AGAIN, open_video, reason_of
from sttm_lmms.video.deadline import Deadline
from sttm_lmms.video.index import FrameIndex, decode_all

_BT601 = 5


def read_pyav(
    path: str | Path, index: FrameIndex, numbers: Sequence[int], deadline: Deadline
) -> Iterator[tuple[np.ndarray, bool]]:
    """Frames ``numbers`` (increasing, each once, in range) as the file asks for them to be turned
    and mirrored.

    Yields:
        uint8 ``[H, W, 3]`` RGB, and whether it is that very picture: in place of one that cannot be
        decoded comes the one before it, which stays on a player's screen.

    Raises:
        VideoError: no picture can be decoded, or the time is over.
    """
    frames = _counted(path, numbers, deadline) if index.counted else _sought(path, index, numbers, deadline)
    size: tuple[int, int] | None = None
    for frame, exact in frames:
        image = to_rgb(frame, size)
        size = image.shape[:2]
        yield image, exact


def _counted(path: str | Path, numbers: Sequence[int], deadline: Deadline) -> Iterator[tuple[av.VideoFrame, bool]]:
    wanted = iter(numbers)
    number = next(wanted)
    for count, frame in enumerate(decode_all(path, deadline)):
        if count == number:
            yield frame, True
            number = next(wanted, -1)
            if number < 0:
                return


def _sought(
    path: str | Path, index: FrameIndex, numbers: Sequence[int], deadline: Deadline
) -> Iterator[tuple[av.VideoFrame, bool]]:
    cursor = FrameCursor(path, index, deadline)
    try:
        for number in numbers:
            pts = int(index.pts[number])
            frame = cursor.frame_at(pts)
            if frame is None:
                raise VideoError(path, f"frame {number} cannot be decoded", COPY_AGAIN)
            yield frame, frame.pts == pts
    except av.FFmpegError as error:
        deadline.check(path)
        raise VideoError(path, f"cannot be decoded ({reason_of(error)})", COPY_AGAIN) from error
    finally:
        cursor.close()


def to_rgb(frame: av.VideoFrame, size: tuple[int, int] | None = None) -> np.ndarray:
    """One decoded frame as uint8 ``[H, W, 3]``, upright, in another (height, width) where that is
    given.

    The matrix and the range that the file names are honoured, with bilinear chroma: exactly
        decord's conversion.
    """
    swapped, flipped = _display(frame)
    height, width = size or ((frame.width, frame.height) if swapped else (frame.height, frame.width))
    if swapped:
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
    array = rgb.to_ndarray()
    return np.ascontiguousarray(np.flip(array.swapaxes(0, 1) if swapped else array, flipped))


def _display(frame: av.VideoFrame) -> tuple[bool, tuple[int, ...]]:
    """Whether rows and columns change places, and the axes to flip after that, by the frame's
    display matrix.

    ``x' = a x + c y`` and ``y' = b x + d y``; other angles than right ones are taken for the
    nearest right one.
    """
    side_data: Any = frame.side_data  # iterates over values, not over keys
    data = next((one for one in side_data if one.type is Type.DISPLAYMATRIX), None)
    if data is None:
        return False, ()
    a, b, _, c, d, *_ = np.frombuffer(data, np.int32).tolist()
    swapped = abs(b) > abs(a)
    to_x, to_y = (c, b) if swapped else (a, d)
    return swapped, tuple(axis for axis, sign in ((0, to_y), (1, to_x)) if sign < 0)


class _DamagedError(Exception):
    """A packet could not be decoded while several were in work."""


class FrameCursor:
    """A place in the file that moves forward by decoding and jumps where that skips something.

    Attributes:
        packets: packets decoded so far.
    """

    def __init__(self, path: str | Path, index: FrameIndex, deadline: Deadline) -> None:
        self.packets = 0
        self._path, self._index, self._deadline = path, index, deadline
        self._threads = True
        self._container, self._stream = open_video(path, deadline)
        self._frames: Iterator[av.VideoFrame] = iter(())
        self._current: av.VideoFrame | None = None
        self._ahead: av.VideoFrame | None = None

    def close(self) -> None:
        self._container.close()

    def frame_at(self, pts: int) -> av.VideoFrame | None:
        """The frame on the screen at ``pts``, the first one before any is shown; None if there is
        none at all."""
        key = self._index.key_before(pts)
        if self._current is None or self._index.keys[key] > self._current.pts:
            frame = self._from_key(key, pts)
        else:
            frame = self._advance(pts, key)
        # Some encoders mark frames as key frames that need many frames more before the picture is
        # whole.
        back = 1
        while (frame is None or frame.pts > pts) and key > 0:
            key, back = max(key - back, 0), 2 * back
            frame = self._from_key(key, pts)
        return frame

    def _from_key(self, key: int, pts: int) -> av.VideoFrame | None:
        self._seek(key)
        return self._advance(pts, key)

    def _advance(self, pts: int, key: int) -> av.VideoFrame | None:
        try:
            while self._current is None or self._current.pts < pts:
                if self._ahead is None:
                    self._ahead = next((frame for frame in self._frames if frame.pts is not None), None)
                if self._ahead is None or (self._current is not None and self._ahead.pts > pts):
                    break
                self._current, self._ahead = self._ahead, None
            return self._current
        except _DamagedError:
            # Threads decode several packets at a time, and drop whole ones beside a damaged one.
            self._threads = False
            self._reopen()
            return self._from_key(key, pts)

    def _reopen(self) -> None:
        self._container.close()
        self._container, self._stream = open_video(self._path, self._deadline, threads=self._threads)

    def _seek(self, key: int) -> None:
        """Start decoding at key frame ``key``, or at an earlier one where the container cannot seek
        that precisely."""
        wanted = int(self._index.keys[key])
        for earlier in range(key, 0, -1):
            self._deadline.check(self._path)
            try:
                self._container.seek(int(self._index.keys[earlier]), stream=self._stream)
                packets = self._container.demux(self._stream)
                first = next(packets)
            except av.FFmpegError:
                continue
            # A packet behind the key frame: this container seeks to somewhere near, so try an
            # earlier one.
            if first.size and (first.pts is None or first.pts <= wanted):
                break
        else:  # the beginning of the file needs no seeking
            self._reopen()
            packets = self._container.demux(self._stream)
            first = next(packets)
        self._current = self._ahead = None
        self._frames = self._decode(chain([first], packets))

    def _decode(self, packets: Iterator[av.Packet]) -> Iterator[av.VideoFrame]:
        while True:
            self._deadline.check(self._path)
            try:
                packet = next(packets)
            except (StopIteration, av.FFmpegError):  # libav cannot go on: what follows is lost, as in a player
                return
            self.packets += 1
            try:
                yield from self._stream.decode(packet)
            except av.FFmpegError as error:
                if self._threads:
                    raise _DamagedError from error
