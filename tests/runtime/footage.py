"""What the runtime's tests share: families, frame sampling and footage."""

from __future__ import annotations

import numpy as np

from sttm_lmms.video import VideoSettings

FAMILY_NAMES = ("llava_video", "llava_onevision", "qwen2_vl")
VIDEO = VideoSettings(max_frames=8, fps=1.0, min_pixels=4 * 28 * 28, max_pixels=20 * 28 * 28)


def moving_squares(seed: int, frames: int, height: int = 96, width: int = 128) -> np.ndarray:
    """``[T, H, W, 3]`` uint8: two squares that move over a gradient."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    base = np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], axis=-1)
    clip = np.repeat(base[None], frames, axis=0)
    for colour in rng.integers(0, 256, (2, 3)):
        top, left, dy, dx = rng.integers(0, 40), rng.integers(0, 60), rng.integers(0, 3), rng.integers(0, 4)
        for t in range(frames):
            clip[t, top + dy * t : top + dy * t + 24, left + dx * t : left + dx * t + 24] = colour
    return clip.astype(np.uint8)
