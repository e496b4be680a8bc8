from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from video_clips import CLIPS, DECORD_MISREADS, DECORD_READS, TORCHCODEC_MISREADS, TORCHCODEC_READS, moving

from sttm_lmms.errors import VideoError
from sttm_lmms.video import available_backends, probe, read_frames, reading, write_video
from sttm_lmms.video.pyav_reader import FrameCursor, to_rgb
from sttm_lmms.video.torchcodec_reader import torchcodec_available

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


@pytest.mark.parametrize("name", DECORD_READS)
def test_decord_and_pyav_give_the_same_pixels(clip: Clip, name: str) -> None:
    pytest.importorskip("decord")
    info = probe(clip(name))
    every = list(range(info.total_frames))
    for indices in [every, *(some_indices(info.total_frames, seed) for seed in range(8))]:
        a, b = (read_frames(info, indices, backend) for backend in ("decord", "pyav"))
        np.testing.assert_array_equal(a.frames, b.frames)
        assert (a.timestamps, a.indices, a.fps, a.duration) == (b.timestamps, b.indices, b.fps, b.duration)


@pytest.mark.parametrize("name", TORCHCODEC_READS)
def test_torchcodec_and_pyav_give_the_same_pixels(clip: Clip, name: str) -> None:
    _needs_torchcodec()
    info = probe(clip(name))
    every = list(range(info.total_frames))
    for indices in [every, *(some_indices(info.total_frames, seed) for seed in range(8))]:
        a, b = (read_frames(info, indices, backend) for backend in ("torchcodec", "pyav"))
        np.testing.assert_array_equal(a.frames, b.frames)


@pytest.mark.parametrize("name", TORCHCODEC_MISREADS)
def test_torchcodec_is_refused_where_it_would_give_other_frames(clip: Clip, name: str) -> None:
    _needs_torchcodec()
    with pytest.raises(VideoError, match=f"{name}: torchcodec .*video_backend='pyav'"):
        read_frames(clip(name), [0], "torchcodec")
    info = probe(clip(name))
    indices = [3, 7, info.total_frames - 1]
    np.testing.assert_array_equal(read_frames(info, indices, "auto").frames, decode_all(clip(name))[indices])


def _needs_torchcodec() -> None:
    if not torchcodec_available():
        pytest.skip("torchcodec is not installed, or finds no FFmpeg libraries")


def test_a_missing_backend_is_named(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sttm_lmms.video.reading.torchcodec_available", lambda: False)
    assert "torchcodec" not in available_backends()
    with pytest.raises(ValueError, match="needs the package torchcodec and FFmpeg's shared libraries: pip install"):
        read_frames(clip("plain.mp4"), [0], "torchcodec")


def test_auto_takes_the_next_backend_where_one_cannot_read_a_file(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(path: object, index: object, numbers: object) -> np.ndarray:
        raise VideoError(path, "no")

    monkeypatch.setattr("sttm_lmms.video.reading.torchcodec_available", lambda: True)
    monkeypatch.setitem(reading._DECODERS, "torchcodec", refuses)
    assert available_backends()[0] == "torchcodec"
    expected = read_frames(clip("plain.mp4"), [0, 9], "pyav").frames
    np.testing.assert_array_equal(read_frames(clip("plain.mp4"), [0, 9], "auto").frames, expected)


def test_decord_agrees_on_the_facts(clip: Clip) -> None:
    decord = pytest.importorskip("decord")
    for name in DECORD_READS:
        reader, info = decord.VideoReader(str(clip(name))), probe(clip(name))
        assert len(reader) == info.total_frames
        assert reader.get_avg_fps() == pytest.approx(info.fps, rel=1e-12)


@pytest.mark.parametrize("name", DECORD_MISREADS)
def test_decord_is_refused_where_it_would_give_other_frames(clip: Clip, name: str) -> None:
    pytest.importorskip("decord")
    with pytest.raises(VideoError, match=f"{name}: decord .*video_backend='pyav'"):
        read_frames(clip(name), [0], "decord")
    info = probe(clip(name))
    indices = [3, 7, info.total_frames - 1]
    np.testing.assert_array_equal(read_frames(info, indices, "auto").frames, decode_all(clip(name))[indices])


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
    assert probe(clip("variable_rate.mp4")).fps == pytest.approx(60 / 5.6)


def test_only_the_needed_stretches_are_decoded(tmp_path: Path) -> None:
    path = write_video(tmp_path / "long.mp4", moving(600, 32, 32), 30, gop=30, bframes=2)
    info = probe(path)
    assert info.index is not None

    def packets_for(*indices: int) -> int:
        cursor = FrameCursor(path, info.index)
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


def test_a_missing_decord_means_pyav(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sttm_lmms.video.reading.torchcodec_available", lambda: False)
    monkeypatch.setattr("sttm_lmms.video.reading.decord_available", lambda: False)
    assert available_backends() == ["pyav"]
    assert read_frames(clip("plain.mp4"), [7]).frames.shape == (1, 90, 130, 3)
    with pytest.raises(ValueError, match="pip install decord, or take 'pyav'"):
        read_frames(clip("plain.mp4"), [7], "decord")


def test_nothing_is_written_to_stderr(clip: Clip, capfd: pytest.CaptureFixture[str]) -> None:
    for backend in ("auto", "pyav"):
        for name in ("bframes.mp4", "open_gop.mp4", "vp9.webm", "cut.mp4"):
            read_frames(clip(name), [5, 17, 29], backend)
    assert capfd.readouterr().err == ""
