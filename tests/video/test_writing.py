from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from video_clips import moving

from sttm_lmms.video import probe, read_frames, write_video


def test_the_same_frames_give_the_same_bytes(tmp_path: Path) -> None:
    a, b = (write_video(tmp_path / name, moving(20), 30) for name in ("a.mp4", "b.mp4"))
    assert a.read_bytes() == b.read_bytes()


def test_lossless_round_trip_of_grey(tmp_path: Path) -> None:
    grey = [np.full((16, 16, 3), level, np.uint8) for level in (16, 60, 128, 235)]
    frames = read_frames(write_video(tmp_path / "grey.mp4", grey, 4, crf=0), range(4), "pyav").frames
    assert np.abs(frames.astype(int) - np.stack(grey)).max() <= 1


def test_times_are_kept(tmp_path: Path) -> None:
    path = write_video(tmp_path / "slow.mp4", moving(4), 10, times=[0.0, 0.1, 1.1, 1.2])
    info = probe(path)
    assert info.total_frames == 4
    assert np.diff(info.index.pts).tolist() == pytest.approx([9_000, 90_000, 9_000])


@pytest.mark.parametrize(
    ("frames", "options", "reason"),
    [
        ([], {}, "no frames"),
        ([np.zeros((8, 8, 3), np.float32)], {}, "must be uint8"),
        ([np.zeros((8, 8), np.uint8)], {}, "must be uint8"),
        ([np.zeros((9, 8, 3), np.uint8)], {}, "yuv420p needs even sides"),
        ([np.zeros((16, 16, 3), np.uint8), np.zeros((8, 8, 3), np.uint8)], {}, "frame 1 is 8x8"),
        ([np.zeros((16, 16, 3), np.uint8)] * 2, {"times": [0.0, 0.0]}, "times must increase"),
        ([np.zeros((16, 16, 3), np.uint8)] * 2, {"times": [0.0]}, "1 times for more frames"),
        ([np.zeros((16, 16, 3), np.uint8)], {"times": [0.0, 1.0]}, "2 times for 1 frames"),
    ],
)
def test_what_cannot_be_written_leaves_nothing(tmp_path: Path, frames: list, options: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        write_video(tmp_path / "clip.mp4", frames, 25, **options)
    assert list(tmp_path.iterdir()) == []
