"""Real video files, encoded when the tests run."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from sttm_lmms.video import write_video


def moving(count: int, height: int = 90, width: int = 130) -> Iterable[np.ndarray]:
    """Frames that all differ: a gradient that moves and a square that runs over it."""
    y, x = np.mgrid[:height, :width]
    for i in range(count):
        frame = np.stack([(x + 3 * i) % 256, (2 * y + 5 * i) % 256, np.full_like(x, i * 7 % 256)], -1).astype(np.uint8)
        left = 5 * i % (width - 20)
        frame[10:30, left : left + 20] = (255, 255, 0)
        yield frame


def encode(path: Path, codec: str, pixel_format: str, frames: Iterable[np.ndarray], **context: Any) -> Path:
    """Files that :func:`write_video` does not make: other codecs, pixel formats and colour tags."""
    options = context.pop("options", {})
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.pix_fmt = pixel_format
        for name, value in context.items():
            setattr(stream.codec_context, name, value)
        for i, array in enumerate(frames):
            stream.height, stream.width = array.shape[:2]
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def remux(source: Path, target: Path, options: dict[str, str], shift: float = 0.0) -> Path:
    """Copy the packets, ``shift`` seconds earlier, without decoding."""
    with av.open(str(source)) as old, av.open(str(target), "w", options=options) as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        ticks = round(shift / stream.time_base)
        for packet in old.demux(stream):
            if packet.dts is not None:
                packet.pts -= ticks
                packet.dts -= ticks
                packet.stream = copy
                new.mux(packet)
    return target


def rotate(source: Path, target: Path, degrees: int) -> Path:
    """Copy an mp4 file with another display matrix: that many degrees clockwise."""
    data = bytearray(source.read_bytes())
    matrix = data.find(b"tkhd") + 4 + 40
    one = 1 << 16
    a, b, c, d = {90: (0, one, -one, 0), 180: (-one, 0, 0, -one), 270: (0, -one, one, 0)}[degrees]
    data[matrix : matrix + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    target.write_bytes(data)
    return target


def _upright(path: Path) -> Path:
    upright = path.with_name("upright.mp4")
    return upright if upright.exists() else write_video(upright, moving(20), 25)


def _variable_times(count: int) -> list[float]:
    return np.cumsum([0.0] + [0.04 if i % 3 else 0.2 for i in range(count - 1)]).tolist()


def _open_gop(path: Path) -> Path:
    options = {"bf": "3", "x264-params": "open-gop=1:keyint=8:min-keyint=8:b-adapt=0"}
    return encode(path, "libx264", "yuv420p", moving(60), options=options)


CLIPS: dict[str, Callable[[Path], Path]] = {
    "bframes.mp4": lambda p: write_video(p, moving(60), 29.97, bframes=3, gop=16),
    "plain.mp4": lambda p: write_video(p, moving(50), 25, bframes=0, gop=10),
    "open_gop.mp4": _open_gop,
    "variable_rate.mp4": lambda p: write_video(p, moving(60), 25, times=_variable_times(60)),
    "odd_444.mp4": lambda p: write_video(p, moving(20, 91, 131), 25, pixel_format="yuv444p"),
    "odd_420.mp4": lambda p: encode(p, "mpeg4", "yuv420p", moving(20, 91, 131)),
    "single.mp4": lambda p: write_video(p, moving(1), 25),
    "upright.mp4": lambda p: write_video(p, moving(20), 25),
    "rotated_90.mp4": lambda p: rotate(_upright(p), p, 90),
    "rotated_180.mp4": lambda p: rotate(_upright(p), p, 180),
    "rotated_270.mp4": lambda p: rotate(_upright(p), p, 270),
    "bt709.mp4": lambda p: encode(p, "libx264", "yuv420p", moving(10), colorspace=1, color_range=1),
    "bt709_full.mp4": lambda p: encode(p, "libx264", "yuvj420p", moving(10), colorspace=1, color_range=2),
    "ten_bit.mp4": lambda p: encode(p, "libx264", "yuv420p10le", moving(10)),
    "hevc.mp4": lambda p: encode(p, "libx265", "yuv420p", moving(30), options={"x265-params": "log-level=none"}),
    "matroska.mkv": lambda p: encode(p, "libx264", "yuv420p", moving(60), options={"bf": "2", "g": "12"}),
    "vp9.webm": lambda p: encode(p, "libvpx-vp9", "yuv420p", moving(30), options={"g": "10"}),
    "cut.mp4": lambda p: remux(
        write_video(p.with_name("uncut.mp4"), moving(60), 25, gop=24), p, {"avoid_negative_ts": "disabled"}, shift=0.4
    ),
    "stream.ts": lambda p: encode(p, "libx264", "yuv420p", moving(60), options={"bf": "2", "g": "12"}),
    "bframes.avi": lambda p: encode(p, "mpeg4", "yuv420p", moving(30), options={"bf": "2"}),
}
DECORD_MISREADS = ["cut.mp4", "open_gop.mp4", "stream.ts", "bframes.avi"]
TORCHCODEC_MISREADS = ["open_gop.mp4", "odd_420.mp4", "ten_bit.mp4", "stream.ts", "bframes.avi"]
MISREADS = {"decord": DECORD_MISREADS, "torchcodec": TORCHCODEC_MISREADS}
