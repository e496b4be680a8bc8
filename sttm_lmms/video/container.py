"""Opening a video file, choosing its stream, and telling whether a part of it is missing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import av
from av.stream import Disposition

from sttm_lmms.errors import VideoError
from sttm_lmms.video.deadline import Deadline

COPY_AGAIN = "copy or download it again"

# Formats whose header promises a duration and nothing else that could tell whether the file is
# complete.
_TIMED = ("flv", "asf")
# Pixels by which a stream marked as default is preferred to a larger one, as in ffmpeg.
_DEFAULT_BONUS = 5_000_000
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def open_video(
    path: str | Path, deadline: Deadline | None = None, *, threads: bool = True
) -> tuple[av.container.InputContainer, av.VideoStream]:
    """The container and its video stream; the caller closes the container.

    Args:
        deadline: bounds the time for which a file system may keep libav waiting.
        threads: decode several frames at a time. A decoder that does so may drop frames beside a
            damaged one.

    Raises:
        VideoError: missing, a folder, a pipe or device, unreadable, empty, not a video, or without
            a video stream.
    """
    head = _read_head(Path(path))
    left = deadline.left if deadline else None
    try:
        # No playlist may make the reader open an address of its own.
        options = {"protocol_whitelist": "file"}
        container = av.open(str(Path(path).absolute()), container_options=options, timeout=left)
    except av.FFmpegError as error:
        if deadline:
            deadline.check(path)
        if head[4:8] == b"ftyp":
            raise VideoError(path, "truncated: the index of this mp4 file is missing", COPY_AGAIN) from error
        raise VideoError(path, f"not a video ({reason_of(error)})", "give a video file such as mp4 or mkv") from error
    try:
        stream = _video_stream(path, container)
        stream.thread_type = "AUTO" if threads else "NONE"
        return container, stream
    except BaseException:
        container.close()
        raise


def reason_of(error: av.FFmpegError) -> str:
    """What libav says about an error."""
    return error.strerror or type(error).__name__


def _video_stream(path: str | Path, container: av.container.InputContainer) -> av.VideoStream:
    """The stream that ffmpeg would take: marked as default, else the one with most pixels; never a
    cover picture."""
    name = container.format.name
    if name in {"tty", "hls", "dash", "concat", "image2"} or name.endswith("_pipe"):
        raise VideoError(path, f"not a video (it reads as {name})", "give a video file such as mp4 or mkv")
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        what = "only audio" if container.streams.audio else "no video"
        raise VideoError(path, f"has {what}", "give a file with a video stream")
    return max(
        streams,
        key=lambda s: (
            s.codec_context.width * s.codec_context.height + _DEFAULT_BONUS * bool(s.disposition & Disposition.default)
        ),
    )


def is_only_stream(container: av.container.InputContainer) -> bool:
    """Whether there is no other video stream that a decoder could take instead."""
    return len(container.streams.video) == 1


def _read_head(path: Path) -> bytes:
    if path.is_dir():
        raise VideoError(path, "is a folder", "give the path of a video file")
    try:
        if path.exists() and not path.is_file():  # opening a pipe waits for a writer, and a device may never end
            raise VideoError(path, "is a pipe or a device, not a file", "copy its content to a video file")
        with path.open("rb") as file:
            head = file.read(16)
    except FileNotFoundError as error:
        raise VideoError(path, "does not exist", "check the path and the data folder") from error
    except PermissionError as error:
        raise VideoError(path, "must not be read by this user", "change its permissions: chmod +r FILE") from error
    except (OSError, ValueError) as error:
        raise VideoError(path, f"cannot be opened ({error})", "check the path") from error
    if not head:
        raise VideoError(path, "is empty (0 bytes)", COPY_AGAIN)
    return head


def streams_to_read(container: av.container.InputContainer, stream: av.VideoStream) -> tuple[av.stream.Stream, ...]:
    """The video stream, and the others where only they show how far the file goes."""
    return tuple(container.streams.get()) if container.format.name in _TIMED else (stream,)


def missing_part(
    path: str | Path,
    container: av.container.InputContainer,
    stream: av.VideoStream,
    *,
    packets: int,
    cut_off: int,
    end: float,
) -> str | None:
    """What is missing against what the headers promise; None for a complete file and where no
    header says so.

    Args:
        packets: that the stream has, dropped frames included.
        cut_off: those that end too early.
        end: seconds at which the last packet of any stream ends.
    """
    name = container.format.name
    if name in _TIMED:
        promised, last_frame = (container.duration or 0) / av.time_base, 1.5 / float(stream.average_rate or 1)
        if end < 0.99 * promised - max(0.25, last_frame):
            return f"{end:.1f} of {promised:.1f} seconds are there"
    size, declared = Path(path).stat().st_size, _declared_size(Path(path), name)
    if declared is None or declared <= size:
        return None
    # An mp4 file may be cut in its sound alone; its index counts the pictures. Fragments have no
    # such index.
    complete = "mp4" in name and stream.frames and packets == stream.frames and not cut_off
    if complete:
        return None
    if stream.frames > packets or cut_off:
        total = max(stream.frames, packets)
        return f"{min(packets, total) - cut_off} of {total} frames are there"
    return f"{size} of {declared} bytes are there"


def _declared_size(path: Path, name: str) -> int | None:
    """Bytes that the file has by its own headers; None where they do not say."""
    with path.open("rb") as file:
        if "mp4" in name:
            return _end_of_boxes(file, path.stat().st_size)
        if "matroska" in name:
            return _end_of_segment(file)
        if name == "avi":
            return _end_of_riff(file)
    return None


def _end_of_boxes(file: BinaryIO, size: int) -> int | None:
    """Where the last box of media or index ends in an mp4 file (ISO/IEC 14496-12, 4.2)."""
    position, end = 0, None
    while position + 8 <= size:
        file.seek(position)
        header = file.read(16)
        length, kind = int.from_bytes(header[:4], "big"), header[4:8]
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        if length < 8:  # 0 is a box that goes on to the end; others are no boxes
            break
        position += length
        if kind in (b"moov", b"moof", b"mdat"):
            end = position
    return end


def _end_of_segment(file: BinaryIO) -> int | None:
    """Where the segment of a Matroska file ends (RFC 8794, sections 4 to 6)."""
    if file.read(4) != _EBML:
        return None
    length = _vint(file)
    if length is None:
        return None
    file.seek(length, 1)
    if file.read(4) != _SEGMENT:
        return None
    length = _vint(file)
    return None if length is None else file.tell() + length


def _vint(file: BinaryIO) -> int | None:
    """An EBML number; None for the one that stands for "not known"."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    width = 9 - first[0].bit_length()
    value = int.from_bytes(first + file.read(width - 1), "big") & ((1 << 7 * width) - 1)
    return None if value == (1 << 7 * width) - 1 else value


def _end_of_riff(file: BinaryIO) -> int | None:
    """Where the last RIFF list of an AVI file ends; large files have several."""
    position, end = 0, None
    while file.seek(position) == position and file.read(4) == b"RIFF":
        length = int.from_bytes(file.read(4), "little")
        if not length:
            break
        position = end = position + 8 + length
        position += position % 2
    return end


def packets_of(
    path: str | Path,
    container: av.container.InputContainer,
    streams: tuple[av.stream.Stream, ...],
    deadline: Deadline,
) -> Iterator[av.Packet]:
    """The packets up to the end, or up to where libav cannot go on, as ffmpeg does."""
    try:
        for packet in container.demux(*streams):
            deadline.check(path)
            yield packet
    except av.FFmpegError:
        deadline.check(path)
