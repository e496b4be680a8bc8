"""The frame index of a file: what is shown, when, and where decoding can start. Nothing is decoded for it.

Frames are numbered in presentation order. A packet that an edit list hides is decoded where others need it but is
not a frame of the video.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition

from sttm_lmms.errors import VideoError

_REENCODE = "re-encode it: ffmpeg -i IN -c:v libx264 OUT.mp4"
_COPY_AGAIN = "copy or download it again"


@dataclass(frozen=True)
class FrameIndex:
    """Presentation times in units of the stream's time base.

    Attributes:
        pts: int64 ``[N]`` of the frames that are shown, increasing.
        keys: int64 ``[K]`` of the packets where decoding can start, increasing; hidden ones included.
        container: the container format as libav names it, such as ``"mov,mp4,m4a,3gp,3g2,mj2"``.
        open_gop: True if frames that follow a key frame in the file are shown before it, and so need the frames
            before that key frame too.
    """

    pts: np.ndarray
    keys: np.ndarray
    container: str
    open_gop: bool

    def key_before(self, pts: int) -> int:
        """Number of the last key frame that is shown at or before ``pts``."""
        return max(int(np.searchsorted(self.keys, pts, side="right")) - 1, 0)


def build_index(path: str | Path, container: av.container.InputContainer, stream: av.VideoStream) -> FrameIndex:
    """Read the packets of ``stream``; those of the other streams too where only they show how far the file goes.

    Raises:
        VideoError: no frames, truncated, or no presentation times. A truncated MPEG-TS file, or an mp4 file cut
            between two fragments, is not recognised: nothing in it says how long it should be.
    """
    shown, keys, end, packets, broken, open_gop = [], [], 0.0, 0, 0, False
    streams = (stream,) if stream.frames else container.streams.get()
    try:
        for packet in container.demux(*streams):
            if packet.size == 0:  # the flush packet at the end, or a frame that the encoder dropped
                continue
            if packet.pts is not None:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream.index != stream.index:
                continue
            packets += 1
            broken += packet.is_corrupt
            if packet.pts is None:
                raise VideoError(path, "does not say when its frames are shown", _REENCODE)
            if packet.is_keyframe:
                keys.append(packet.pts)
            if not packet.is_discard:
                shown.append(packet.pts)
            open_gop |= bool(keys) and packet.pts < keys[-1]
    except av.FFmpegError as error:
        raise VideoError(path, f"broken after {packets} frames ({_reason(error)})", _COPY_AGAIN) from error
    if not shown:
        raise VideoError(path, "has a video stream without frames", _COPY_AGAIN)
    if broken:
        raise VideoError(path, f"truncated: {broken} of {packets} frames are cut off", _COPY_AGAIN)
    _check_complete(path, container, stream, packets, end)
    name = container.format.name
    if name == "avi" and stream.codec_context.has_b_frames and shown == sorted(shown):
        # AVI stores no presentation times; with B-frames the order in which the packets lie is not the order shown.
        raise VideoError(path, "does not say when its frames are shown (AVI with B-frames)", _REENCODE)
    keys = keys or shown[:1]
    return FrameIndex(np.unique(np.array(shown, np.int64)), np.unique(np.array(keys, np.int64)), name, open_gop)


def open_video(path: str | Path) -> tuple[av.container.InputContainer, av.VideoStream]:
    """The container and its video stream; the caller closes the container.

    Raises:
        VideoError: missing, a folder, unreadable, empty, not a video, or without a video stream.
    """
    head = _read_head(Path(path))
    try:
        # No playlist may make the reader open an address of its own.
        container = av.open(str(Path(path).absolute()), container_options={"protocol_whitelist": "file"})
    except av.FFmpegError as error:
        if head[4:8] == b"ftyp":
            raise VideoError(path, "truncated: the index of this mp4 file is missing", _COPY_AGAIN) from error
        raise VideoError(path, f"not a video ({_reason(error)})", "give a video file such as mp4 or mkv") from error
    try:
        return container, _video_stream(path, container)
    except BaseException:
        container.close()
        raise


def _video_stream(path: str | Path, container: av.container.InputContainer) -> av.VideoStream:
    name = container.format.name
    if name in {"tty", "hls", "dash", "concat", "image2"} or name.endswith("_pipe"):
        raise VideoError(path, f"not a video (it reads as {name})", "give a video file such as mp4 or mkv")
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        what = "only audio" if container.streams.audio else "no video"
        raise VideoError(path, f"has {what}", "give a file with a video stream")
    stream = streams[0]
    stream.thread_type = "AUTO"
    return stream


def _read_head(path: Path) -> bytes:
    if path.is_dir():
        raise VideoError(path, "is a folder", "give the path of a video file")
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except FileNotFoundError as error:
        raise VideoError(path, "does not exist", "check the path and the data folder") from error
    except PermissionError as error:
        raise VideoError(path, "must not be read by this user", "change its permissions: chmod +r FILE") from error
    except (OSError, ValueError) as error:
        raise VideoError(path, f"cannot be opened ({error})", "check the path") from error
    if not head:
        raise VideoError(path, "is empty (0 bytes)", _COPY_AGAIN)
    return head


def _check_complete(
    path: str | Path, container: av.container.InputContainer, stream: av.VideoStream, packets: int, end: float
) -> None:
    """Compare what the headers promise with what is there."""
    if stream.frames:
        # Other containers than mp4 count dropped frames as well, or count roughly.
        missing = stream.frames - packets
        if missing > (0 if "mp4" in container.format.name else 0.02 * stream.frames + 1):
            raise VideoError(path, f"truncated: {packets} of {stream.frames} frames are there", _COPY_AGAIN)
    elif container.duration is not None:
        promised = (container.duration + max(container.start_time or 0, 0)) / av.time_base
        last_frame = 1.5 / float(stream.average_rate or 1)  # often without a duration of its own
        if end < 0.99 * promised - max(0.25, last_frame):
            raise VideoError(path, f"truncated: {end:.1f} of {promised:.1f} seconds are there", _COPY_AGAIN)


def _reason(error: av.FFmpegError) -> str:
    return error.strerror or type(error).__name__
