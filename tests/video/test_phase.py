"""Frames that lie a share of a step later."""

from __future__ import annotations

import numpy as np
import pytest

from sttm_lmms.families import get_family
from sttm_lmms.video import VideoSettings, write_video
from sttm_lmms.video.sampling import later


@pytest.mark.parametrize(
    ("numbers", "phase", "expected"),
    [
        ([0, 10, 20], 0.0, [0, 10, 20]),
        ([0, 10, 20], 0.5, [5, 15, 25]),
        ([0, 10, 24], 0.5, [5, 17, 29]),  # the last one is cut off by the end of the file
        ([0, 1, 2], 0.25, [0, 1, 2]),
        ([7], 0.5, [7]),
    ],
)
def test_by_hand(numbers, phase, expected):
    assert later(numbers, phase, 29) == expected


@pytest.mark.parametrize("family", ["llava_video", "qwen2_vl", "internvl"])
def test_every_family_takes_other_frames_as_many(family, tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (40, 56, 56, 3), dtype=np.uint8)
    clip = write_video(tmp_path / "clip.mp4", frames, fps=10)
    plain, shifted = (
        get_family(family).read_video(clip, VideoSettings(max_frames=4, fps=1.0, phase=phase)).indices
        for phase in (0.0, 0.5)
    )
    assert len(plain) == len(shifted) > 1
    assert plain[:-1] < shifted[:-1]
    assert max(shifted) < 40


def test_a_whole_step_is_no_phase():
    with pytest.raises(ValueError, match="phase=1"):
        VideoSettings(phase=1.0)
