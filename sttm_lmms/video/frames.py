"""Frames that somebody has decoded already, as a video."""

from __future__ import annotations

from typing import Any

import numpy as np

from sttm_lmms.errors import VideoError
from sttm_lmms.video.settings import Video

_WHAT = "a video is a file, a list of PIL images of one size, or uint8 frames [T, H, W, 3] or [T, 3, H, W]"


def video_of_frames(frames: Any, fps: float) -> Video:
    """All the given frames as a :class:`Video` of ``fps`` frames a second.

    Args:
        frames: PIL images of one size, or a uint8 array or tensor ``[T, H, W, 3]`` or ``[T, 3, H, W]``.
        fps: how many of them make a second.

    Raises:
        VideoError: no frames, frames of different sizes, or not frames at all.
    """
    if isinstance(frames, (list, tuple)) and frames and all(hasattr(frame, "convert") for frame in frames):
        sizes = {frame.size for frame in frames}
        if len(sizes) > 1:
            raise VideoError("frames", f"the images have {len(sizes)} sizes: {sorted(sizes)[:4]}", _WHAT)
        array = np.stack([np.asarray(frame.convert("RGB")) for frame in frames])
    else:
        array = frames.cpu().numpy() if hasattr(frames, "cpu") else np.asarray(frames)
        if array.ndim == 4 and array.shape[1] == 3 and array.shape[3] != 3:
            array = array.transpose(0, 2, 3, 1)
    if array.ndim != 4 or array.shape[3] != 3 or array.dtype != np.uint8 or not array.size:
        raise VideoError("frames", f"{type(frames).__name__} of shape {array.shape} and type {array.dtype}", _WHAT)
    count = len(array)
    return Video(
        frames=np.ascontiguousarray(array),
        timestamps=[index / fps for index in range(count)],
        indices=list(range(count)),
        fps=fps,
        duration=count / fps,
        path="frames",
        sample_fps=fps,
    )
