"""The frame index of a file: which pictures a player shows, when, and where decoding can start.

Frames are numbered in presentation order. Nearly always the packets alone say which pictures are
shown, so nothing is decoded. Where they do not, the file is decoded once and its pictures are
counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import av
import numpy as np

from sttm_lmms.errors import VideoError
from sttm_lmms.video.container import COPY_AGAIN, is_only_stream, missing_part, open_video, packets_of, streams_to_read
from sttm_lmms.video.deadline import Deadline

# Formats that may be joined from several recordings, each with times of its own.
_JOINABLE = ("mpegts", "mpeg", "mpegvideo")
# A longer gap in one of them is taken for a joint, and so is a longer step back in any file.
_GAP_SECONDS, _BACK_SECONDS = 60.0, 1.0
# Formats whose packets have the times of their pictures; elsewhere those of the first pictures are
# compared.
_TIMED = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mpegts", "flv", "gif", "apng")
_COMPARED = 24


@dataclass(frozen=True)
class FrameIndex:
    """Which pictures are shown, and when.

    Attributes:
        pts: int64 ``[N]``, increasing: presentation times in units of the stream's time base; the
            numbers 0 to N-1 where the pictures were counted.
        times: float64 ``[N]``, increasing: seconds since the first picture is shown.
        last_seconds: how long the last picture is shown.
        rate: frames per second that the file names; 0 if it names none.
        keys: int64 ``[K]``, increasing: ``pts`` of the packets where decoding can start, hidden
            ones included.
        container: the container format as libav names it, such as ``"mov,mp4,m4a,3gp,3g2,mj2"``.
        open_gop: True if frames that follow a key frame in the file are shown before it, and so
            need the frames before that key frame too.
        hidden: True if the decoder gets packets of which no picture is shown.
        only_stream: True if the file has no other video stream.
        counted: why the packets do not tell which pictures are shown; empty where they do. Frame n
            of a counted file is the n-th picture that decoding all of it gives.
    """

    pts: np.ndarray
    times: np.ndarray
    last_seconds: float
    rate: float
    keys: np.ndarray
    container: str
    open_gop: bool = False
    hidden: bool = False
    only_stream: bool = True
    counted: str = ""

    @property
    def constant_rate(self) -> bool:
        """Whether every frame is shown less than half a frame away from its number /
        :attr:`rate`."""
        if self.rate <= 0:
            return False
        return bool(np.abs(self.times * self.rate - np.arange(len(self.times))).max() < 0.5)

    def key_before(self, pts: int) -> int:
        """Number of the last key frame that is shown at or before ``pts``."""
        return max(int(np.searchsorted(self.keys, pts, side="right")) - 1, 0)


def build_index(path: str | Path, deadline: Deadline) -> FrameIndex:
    """The index of a file's main video stream.

    Raises:
        VideoError: as :func:`~sttm_lmms.video.container.open_video`; no frames; truncated; or too
            slow. A truncated MPEG-TS file, or an mp4 file cut between two fragments, is not
            recognised: nothing in it says how long it should be.
    """
    container, stream = open_video(path, deadline)
    with container:
        name, base = container.format.name, stream.time_base
        found = _Packets.read(packets_of(path, container, streams_to_read(container, stream), deadline), stream)
        if not found.count:
            raise VideoError(path, "has a video stream without frames", COPY_AGAIN)
        missing = missing_part(path, container, stream, packets=found.count, cut_off=found.cut_off, end=found.end)
        if missing:
            raise VideoError(path, f"truncated: {missing}", COPY_AGAIN)
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        only_stream = is_only_stream(container)
        reason = found.doubt(avi_with_b_frames=name == "avi" and bool(stream.codec_context.has_b_frames))
    shown: Sequence[int | None] = sorted(found.shown)
    if not reason and name not in _TIMED and list(islice(decode_times(path, deadline), _COMPARED)) != shown[:_COMPARED]:
        reason = "its packets and its pictures have different times"
    if reason:
        counted = list(decode_times(path, deadline))
        # Frames may come without times of their own; those of the packets are right if none is
        # missing.
        if len(counted) != len(shown) or found.backwards:
            shown = counted
    seconds = (None if pts is None or base is None else float(pts * base) for pts in shown)
    times = np.sort(list(_without_joints(seconds, 1 / (rate or 25), name in _JOINABLE)))
    if not len(times):
        raise VideoError(path, "cannot be decoded: no picture in it is whole", COPY_AGAIN)
    last = float(found.last_duration * base) if base and found.last_duration else 0.0
    return FrameIndex(
        pts=np.arange(len(times)) if reason else np.array(shown, np.int64),
        times=times,
        last_seconds=last or (float(np.median(np.diff(times))) if len(times) > 1 else 1 / (rate or 1)),
        rate=rate,
        keys=np.zeros(1, np.int64) if reason else np.unique(np.array(found.keys, np.int64)),
        container=name,
        open_gop=found.open_gop,
        hidden=found.hidden,
        only_stream=only_stream,
        counted=reason,
    )


def decode_all(path: str | Path, deadline: Deadline) -> Iterator[av.VideoFrame]:
    """Every picture of a file in the order shown, damaged packets passed over."""
    container, stream = open_video(path, deadline, threads=False)
    with container:
        for packet in packets_of(path, container, (stream,), deadline):
            try:
                yield from stream.decode(packet)
            except av.FFmpegError:
                continue


def decode_times(path: str | Path, deadline: Deadline) -> Iterator[int | None]:
    """Presentation time of each picture, None where the file does not say."""
    for frame in decode_all(path, deadline):
        yield frame.pts if frame.pts is not None else frame.dts


def _without_joints(seconds: Iterable[float | None], period: float, joinable: bool) -> Iterator[float]:
    """Times from 0 on: what is joined to a file goes on where the part before it ended."""
    offset: float | None = None  # None: the next known time goes on where the last one was
    latest = -period
    for second in seconds:
        time = latest + period
        if second is None:
            offset = None
        elif offset is None or not (
            latest - _BACK_SECONDS <= second + offset and (second + offset <= latest + _GAP_SECONDS or not joinable)
        ):
            offset = time - second
        else:
            time = second + offset
        latest = max(latest, time)
        yield time


@dataclass
class _Packets:
    """What the packets of a stream say."""

    shown: list[int] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    count: int = 0
    cut_off: int = 0
    timeless: int = 0
    end: float = 0.0
    last_duration: int = 0
    backwards: bool = False
    starts_late: bool = False
    open_gop: bool = False
    hidden: bool = False

    @classmethod
    def read(cls, packets: Iterable[av.Packet], stream: av.VideoStream) -> _Packets:
        found = cls()
        is_shown = _HEADERS.get(stream.codec_context.name)
        latest, last_pts = None, None
        for packet in packets:
            if packet.pts is not None:
                found.end = max(found.end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream.index != stream.index:
                continue
            if packet.size == 0:  # the flush packet at the end, or a frame that the encoder dropped
                found.count += packet.pts is not None
                continue
            pts, dts = packet.pts, packet.dts
            found.count += 1
            found.cut_off += packet.is_corrupt
            if dts is not None:
                found.backwards |= latest is not None and dts < latest
                latest = dts
            if pts is None:
                found.timeless += 1
                continue
            if packet.is_keyframe:
                found.keys.append(pts)
            elif not found.keys:
                found.starts_late = True
            found.open_gop |= bool(found.keys) and pts < found.keys[-1]
            if packet.is_discard or (is_shown is not None and not is_shown(memoryview(packet))):
                found.hidden |= not packet.is_discard
                continue
            found.shown.append(pts)
            if last_pts is None or pts > last_pts:
                last_pts, found.last_duration = pts, packet.duration or 0
        return found

    def doubt(self, *, avi_with_b_frames: bool) -> str:
        """Why the packets do not say which pictures are shown; empty where they do."""
        if self.cut_off:
            return f"{self.cut_off} of its {self.count} packets are damaged"
        if self.timeless:
            return "it does not say when its frames are shown"
        if self.backwards:
            return "its times go back"
        if self.starts_late or (self.shown and min(self.shown) < self.keys[0]):
            return "it starts between two key frames"
        if len(set(self.shown)) < len(self.shown):
            return "several of its packets are shown at one time"
        if avi_with_b_frames and self.shown == sorted(self.shown):
            # AVI stores no presentation times; with B-frames the order in which packets lie is not
            # the order shown.
            return "it does not say in which order its frames are shown"
        return ""


def _vp8_shows(packet: memoryview) -> bool:
    """RFC 6386, section 9.1: bit 4 of a frame's first byte."""
    return bool(packet[0] >> 4 & 1)


def _vp9_shows(packet: memoryview) -> bool:
    """VP9 bitstream specification, sections 6.2 and Annex B. Of several frames in one packet one is
    shown."""
    if packet[-1] >> 5 == 0b110 and packet[-1] & 7:
        return True
    bits = int.from_bytes(packet[:2].tobytes().ljust(2, b"\0"), "big")
    profile = bits >> 13 & 1 | bits >> 11 & 2
    first = 11 - (profile == 3)  # profile 3 has a reserved bit first
    show_existing, show_frame = bits >> first & 1, bits >> (first - 2) & 1
    return bool(show_existing or show_frame)


_HEADERS = {"vp8": _vp8_shows, "vp9": _vp9_shows}
"""Codecs whose files hold packets of which no picture is shown."""
