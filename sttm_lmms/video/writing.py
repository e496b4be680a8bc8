"""Writing small H.264 mp4 files: for demos, generated benchmarks and tests."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from uuid import uuid4

import av
import numpy as np

_VFR_TIME_BASE = Fraction(1, 90_000)


def write_video(
    path: str | Path,
    frames: Iterable[np.ndarray],
    fps: float | Fraction,
    *,
    crf: int = 18,
    bframes: int = 2,
    gop: int = 24,
    pixel_format: str = "yuv420p",
    times: Sequence[float] | None = None,
) -> Path:
    """Encode frames to an mp4 file. The same frames give the same bytes with the same x264 build,
    on any processor.

    The file appears under its name only when it is complete.

    Args:
        path: target; its folder is made where it is missing.
        frames: uint8 ``[H, W, 3]`` RGB arrays, all of one size. They are consumed one at a time.
        fps: frames per second.
        crf: x264's constant rate factor; 0 is lossless, 18 hardly visible, 51 worst.
        bframes: longest run of B-frames; 0 turns them off.
        gop: frames from one key frame to the next at most.
        pixel_format: ``"yuv420p"`` needs even sides; ``"yuv444p"`` takes any.
        times: presentation time of each frame in seconds, increasing, for a variable frame rate.

    Returns:
        ``path`` as a :class:`~pathlib.Path`.

    Raises:
        ValueError: no frame at all, a wrong shape or dtype, sizes that differ, an odd side with
            ``"yuv420p"``, or ``times`` that do not increase or do not match the frames.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    rate = Fraction(fps).limit_denominator(100_000)
    time_base = 1 / rate if times is None else _VFR_TIME_BASE
    # Without cpu-independent x264 picks algorithms by processor, and some of them do not repeat
    # themselves exactly.
    options = {"crf": str(crf), "bf": str(bframes), "g": str(gop), "preset": "veryfast", "threads": "1"}
    options["x264-params"] = "cpu-independent=1"
    try:
        with av.open(str(partial), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=rate, options=options)
            stream.pix_fmt = pixel_format
            stream.codec_context.thread_count = 1
            stream.codec_context.time_base = time_base
            size: tuple[int, int] | None = None
            count = 0
            for count, array in enumerate(frames, start=1):
                size = _check_frame(array, size, count - 1, pixel_format)
                stream.height, stream.width = size
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")
                frame.pts = count - 1 if times is None else _pts(times, count - 1)
                frame.time_base = time_base
                container.mux(stream.encode(frame))
            if count == 0:
                raise ValueError(f"{path}: there are no frames to write")
            if times is not None and len(times) != count:
                raise ValueError(f"{path}: {len(times)} times for {count} frames")
            container.mux(stream.encode())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _check_frame(array: np.ndarray, size: tuple[int, int] | None, index: int, pixel_format: str) -> tuple[int, int]:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f"frame {index} is {array.dtype} {array.shape}; it must be uint8 [H, W, 3]")
    height, width = array.shape[:2]
    if size is not None and size != (height, width):
        raise ValueError(f"frame {index} is {height}x{width}, the frames before it are {size[0]}x{size[1]}")
    if pixel_format == "yuv420p" and (height % 2 or width % 2):
        raise ValueError(f"frame {index} is {height}x{width}; yuv420p needs even sides, yuv444p does not")
    return height, width


def _pts(times: Sequence[float], index: int) -> int:
    if index >= len(times):
        raise ValueError(f"{len(times)} times for more frames than that")
    if index and times[index] <= times[index - 1]:
        raise ValueError(f"times must increase, but times[{index}]={times[index]} follows {times[index - 1]}")
    return round(times[index] / _VFR_TIME_BASE)
