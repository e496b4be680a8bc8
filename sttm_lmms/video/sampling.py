"""Which frames of a video are looked at."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sttm_lmms.video.settings import VideoInfo


def sample_uniform_fps(info: VideoInfo, fps: float, max_frames: int) -> list[int]:
    """Frame numbers of the LLaVA family: ``fps`` frames a second and the last frame, or
    ``max_frames`` evenly spread.

    Frame ``ceil(k * video_fps / fps)`` for k = 0, 1, ... as far as the video goes, plus the last
    frame, each frame once. Where that is more than ``max_frames``:
    ``linspace(0, last, max_frames)`` rounded down.

    With a variable frame rate the same is done in time: the first frame shown at or after
    ``k / fps`` seconds, or those on the screen at ``max_frames`` evenly spread moments; all frames
    where there are no more than that.

    Args:
        info: what :func:`~sttm_lmms.video.probe` says about the file.
        fps: frames sampled per second, > 0.
        max_frames: at least 1.

    Returns:
        Increasing frame numbers, at most ``max_frames``, at least one.
    """
    last = info.total_frames - 1
    if info.times is not None:
        if info.total_frames <= min(max_frames, info.duration * fps):
            return list(range(info.total_frames))
        moments = np.arange(math.floor(info.times[-1] * fps) + 1) / fps
        indices = {*np.searchsorted(info.times, moments - 1e-6).tolist(), last}
        return sorted(indices) if len(indices) <= max_frames else sorted(set(spread_in_time(info, max_frames)))
    steps = int(last * fps / info.fps) + 2
    indices = {math.ceil(k * info.fps / fps) for k in range(steps)}
    indices = {index for index in indices if index < last} | {last}
    if len(indices) <= max_frames:
        return sorted(indices)
    return np.linspace(0, last, max_frames).astype(int).tolist()


def spread_in_time(info: VideoInfo, count: int) -> list[int]:
    """Numbers of the frames on the screen at ``count`` moments, evenly spread from the first frame
    to the last."""
    assert info.times is not None
    return frames_at(info, np.linspace(0, info.times[-1], count).tolist())


def frames_at(info: VideoInfo, seconds: Sequence[float]) -> list[int]:
    """Numbers of the frames on the screen at these moments of a video with a variable frame
    rate."""
    assert info.times is not None
    return np.maximum(np.searchsorted(info.times, np.array(seconds) + 1e-6, side="right") - 1, 0).tolist()


def later(numbers: Sequence[int], phase: float, last: int) -> list[int]:
    """Frame numbers that each lie the share ``phase`` of the way to the next one; the last one as
    far behind as its predecessor, or ``last``, the file's last frame."""
    if len(numbers) < 2:
        return list(numbers)
    steps = np.diff(numbers, append=2 * numbers[-1] - numbers[-2])
    return np.minimum(np.array(numbers) + np.round(phase * steps).astype(int), last).tolist()
