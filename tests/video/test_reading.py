from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from video_clips import CLIPS, MISREADS, moving

from sttm_lmms.errors import VideoError
from sttm_lmms.video import available_backends, probe, read_frames, write_video
from sttm_lmms.video.deadline import Deadline
from sttm_lmms.video.pyav_reader import FrameCursor, to_rgb

Clip = Callable[[str], Path]


def decode_all(path: Path) -> np.ndarray:
    """The slow obvious way: decode the whole file in order."""
    with av.open(str(path)) as container:
        return np.stack([to_rgb(frame) for frame in container.decode(video=0)])


def some_indices(total: int, seed: int) -> list[int]:
    rng = np.random.default_rng(seed)
    return sorted(rng.integers(0, total, size=rng.integers(1, 7)).tolist())


@pytest.mark.parametrize("name", CLIPS)
def test_pyav_finds_the_frames_that_decoding_everything_gives(clip: Clip, name: str) -> None:
    truth = decode_all(clip(name))
    info = probe(clip(name))
    assert info.total_frames == len(truth)
    assert (info.height, info.width) == truth.shape[1:3]
    for seed in range(8):
        indices = some_indices(len(truth), seed)
        video = read_frames(info, indices, "pyav")
        np.testing.assert_array_equal(video.frames, truth[indices])


OTHERS = [name for name in available_backends() if name != "pyav"]


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("name", ["bframes.mp4", "rotated_90.mp4", "variable_rate.mp4", "vp9.webm"])
def test_other_backends_give_the_same_pixels(clip: Clip, backend: str, name: str) -> None:
    info = probe(clip(name))
    indices = [*range(0, info.total_frames, 3), info.total_frames - 1]
    a, b = (read_frames(info, indices, one) for one in (backend, "pyav"))
    np.testing.assert_array_equal(a.frames, b.frames)
    assert (a.timestamps, a.indices, a.fps, a.duration) == (b.timestamps, b.indices, b.fps, b.duration)


@pytest.mark.parametrize(("backend", "name"), [(backend, name) for backend in OTHERS for name in MISREADS[backend]])
def test_a_backend_is_refused_where_it_would_give_other_frames(clip: Clip, backend: str, name: str) -> None:
    with pytest.raises(VideoError, match=f"{name}: {backend} .*video_backend='pyav'"):
        read_frames(clip(name), [0], backend)


def test_a_missing_backend_is_named(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sttm_lmms.video.reading.is_available", lambda name: False)
    assert available_backends() == ["pyav"]
    for backend in ("torchcodec", "decord"):
        with pytest.raises(ValueError, match=f"needs the package {backend}: pip install {backend}, or take 'pyav'"):
            read_frames(clip("plain.mp4"), [0], backend)


@pytest.mark.parametrize("loop", ["VideoReader", "get_batch"])
def test_a_backend_that_never_comes_back_is_ended(
    clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loop: str
) -> None:
    """A decord of our own that loops; it is found first, in the process in which decord runs."""
    (tmp_path / "decord.py").write_text(
        "class logging:\n    QUIET = 0\n    set_level = staticmethod(lambda level: None)\n"
        "def cpu(number): pass\n"
        "class VideoReader:\n"
        f"    def __init__(self, path, ctx):\n        {'while True: pass' if loop == 'VideoReader' else 'pass'}\n"
        "    def __len__(self): return 60\n"
        "    def get_batch(self, numbers):\n        while True: pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    began = time.monotonic()
    with pytest.raises(VideoError, match=r"bframes.mp4: not read within 3 s; .*video_timeout=3"):
        read_frames(clip("bframes.mp4"), [0, 7], "decord", timeout=3)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(("degrees", "turns"), [(90, -1), (180, 2), (270, 1)])
@pytest.mark.parametrize("backend", available_backends())
def test_rotation_is_applied(clip: Clip, degrees: int, turns: int, backend: str) -> None:
    name = f"rotated_{degrees}.mp4"
    expected = np.rot90(read_frames(clip("upright.mp4"), [4, 11], backend).frames, turns, axes=(1, 2))
    np.testing.assert_array_equal(read_frames(clip(name), [4, 11], backend).frames, expected)


@pytest.mark.parametrize("backend", available_backends())
def test_frames_look_like_what_was_encoded(clip: Clip, backend: str) -> None:
    frames = read_frames(clip("bframes.mp4"), [0, 31, 59], backend).frames
    truth = np.stack(list(moving(60)))[[0, 31, 59]]
    others = np.stack(list(moving(60)))[[1, 30, 58]]
    error = np.abs(frames.astype(int) - truth).mean()
    assert error < 6
    assert error < np.abs(frames.astype(int) - others).mean() / 2


@pytest.mark.parametrize("backend", available_backends())
def test_order_and_repetition_of_indices_are_kept(clip: Clip, backend: str) -> None:
    video = read_frames(clip("bframes.mp4"), np.array([40, 3, 3, 59]), backend)
    assert video.indices == [40, 3, 3, 59]
    assert video.frames.dtype == np.uint8
    np.testing.assert_array_equal(video.frames, decode_all(clip("bframes.mp4"))[[40, 3, 3, 59]])


def test_times_are_frame_number_over_average_rate(clip: Clip) -> None:
    video = read_frames(clip("bframes.mp4"), [0, 30], "pyav")
    assert video.timestamps == [0.0, 30 / 29.97]
    assert video.duration == pytest.approx(60 / 29.97)
    assert video.sample_fps == pytest.approx(2 / video.duration)


def test_only_the_needed_stretches_are_decoded(tmp_path: Path) -> None:
    path = write_video(tmp_path / "long.mp4", moving(600, 32, 32), 30, gop=30, bframes=2)
    info = probe(path)
    assert info.index is not None

    def packets_for(*indices: int) -> int:
        cursor = FrameCursor(path, info.index, Deadline(0))
        for index in indices:
            assert cursor.frame_at(int(info.index.pts[index])).pts == info.index.pts[index]
        cursor.close()
        return cursor.packets

    ahead = 16  # the decoder takes a few packets more: reordering and its threads
    assert packets_for(570) <= 1 + ahead
    assert packets_for(0, 300, 570) <= 3 * (1 + ahead)
    assert packets_for(310) <= 11 + ahead
    assert 30 <= packets_for(0, 10, 29) <= 30 + ahead


@pytest.mark.parametrize("backend", available_backends())
@pytest.mark.parametrize("indices", [[60], [-1], [0, 10_000]])
def test_an_index_out_of_range_is_refused(clip: Clip, backend: str, indices: list[int]) -> None:
    with pytest.raises(ValueError, match=r"bframes.mp4: frame -?\d+ is out of range; it has frames 0 to 59"):
        read_frames(clip("bframes.mp4"), indices, backend)


def test_no_index_and_unknown_backends_are_refused(clip: Clip) -> None:
    with pytest.raises(ValueError, match="no frame was asked for"):
        read_frames(clip("bframes.mp4"), [])
    with pytest.raises(ValueError, match=r"unknown video_backend 'decrod'. Did you mean 'decord'\?"):
        read_frames(clip("bframes.mp4"), [0], "decrod")
    with pytest.raises(ValueError, match="unknown video_backend"):
        probe(clip("bframes.mp4"), "opencv")


def test_nothing_is_written_to_stderr(clip: Clip, capfd: pytest.CaptureFixture[str]) -> None:
    for backend in ("auto", "pyav"):
        for name in ("bframes.mp4", "open_gop.mp4", "vp9.webm", "cut.mp4"):
            read_frames(clip(name), [5, 17, 29], backend)
    assert capfd.readouterr().err == ""
