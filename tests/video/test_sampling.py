from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sttm_lmms.video import VideoInfo, VideoSettings, sample_uniform_fps


def info(total: int, fps: float) -> VideoInfo:
    return VideoInfo("clip.mp4", total, fps, total / fps, 640, 360)


def obvious(total: int, video_fps: float, fps: float, max_frames: int) -> list[int]:
    """The rule written out step by step."""
    indices = []
    k = 0
    while math.ceil(k * video_fps / fps) < total:
        index = math.ceil(k * video_fps / fps)
        if index not in indices:
            indices.append(index)
        k += 1
    if total - 1 not in indices:
        indices.append(total - 1)
    if len(indices) <= max_frames:
        return indices
    if max_frames == 1:
        return [0]
    return [int((total - 1) / (max_frames - 1) * i) if i < max_frames - 1 else total - 1 for i in range(max_frames)]


@settings(max_examples=300, deadline=None)
@given(
    total=st.integers(1, 2000),
    video_fps=st.one_of(
        st.sampled_from([10.0, 23.976023976023978, 25.0, 29.97, 30000 / 1001, 60.0]), st.floats(1, 120)
    ),
    fps=st.one_of(st.sampled_from([0.5, 1.0, 2.0]), st.floats(0.05, 40)),
    max_frames=st.integers(1, 300),
)
def test_the_rule(total: int, video_fps: float, fps: float, max_frames: int) -> None:
    indices = sample_uniform_fps(info(total, video_fps), fps, max_frames)
    expected = obvious(total, video_fps, fps, max_frames)
    assert len(indices) == len(expected) <= max_frames
    assert indices == sorted(set(indices))
    assert 0 <= indices[0] <= indices[-1] <= total - 1
    if len(expected) < max_frames:
        assert indices == expected
    else:  # an even spread computed in another order may differ by one where a product is a whole number
        assert all(abs(a - b) <= 1 for a, b in zip(indices, expected, strict=True))


def test_known_cases() -> None:
    assert sample_uniform_fps(info(100, 25.0), 1, 128) == [0, 25, 50, 75, 99]
    assert sample_uniform_fps(info(101, 25.0), 1, 128) == [0, 25, 50, 75, 100]
    assert sample_uniform_fps(info(90, 29.97), 1, 128) == [0, 30, 60, 89]
    assert sample_uniform_fps(info(1, 25.0), 1, 128) == [0]
    assert sample_uniform_fps(info(3, 10.0), 25, 128) == [0, 1, 2]
    assert sample_uniform_fps(info(1000, 25.0), 1, 8) == [0, 142, 285, 428, 570, 713, 856, 999]
    assert sample_uniform_fps(info(1000, 25.0), 1, 1) == [0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_frames", 0),
        ("max_frames", 1.5),
        ("max_frames", True),
        ("fps", 0),
        ("fps", -1.0),
        ("fps", float("nan")),
        ("fps", "2"),
        ("min_pixels", 0),
        ("max_pixels", -3),
        ("max_pixels", 1),
        ("max_pixels", 783),
    ],
)
def test_settings_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        VideoSettings(**{name: value})


def test_other_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown video_backend 'pyva'. Did you mean 'pyav'\?"):
        VideoSettings(backend="pyva")
    with pytest.raises(ValueError, match=r"unknown sampling 'uniform'. Did you mean 'uniform_fps'\?"):
        VideoSettings(sampling="uniform")
    with pytest.raises(ValueError, match="min_pixels=2000 is more than max_pixels=1000"):
        VideoSettings(min_pixels=2000, max_pixels=1000)
    assert VideoSettings() == VideoSettings(max_frames=128, fps=1.0, backend="auto")
