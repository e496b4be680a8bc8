"""Files that are not readable videos: each a VideoError that names the file, the reason and the way
out."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from video_clips import encode, moving, remux

from sttm_lmms.errors import VideoError
from sttm_lmms.video import probe, read_frames

Clip = Callable[[str], Path]


def refuse(path: Path, reason: str) -> None:
    """All ways in refuse it with the same words."""
    for attempt in (probe, lambda p: read_frames(p, [0])):
        with pytest.raises(VideoError, match=reason) as info:
            attempt(path)
        assert info.value.path == str(path)
        assert str(path) in str(info.value)
        assert ";" in str(info.value), "the way out is missing"


def cut(source: Path, target: Path, share: float) -> Path:
    data = source.read_bytes()
    target.write_bytes(data[: int(len(data) * share)])
    return target


def test_missing(tmp_path: Path) -> None:
    refuse(tmp_path / "missing.mp4", "does not exist")


def test_folder(tmp_path: Path) -> None:
    refuse(tmp_path, "is a folder")


def test_empty(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    refuse(tmp_path / "empty.mp4", "is empty")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
def test_permission(clip: Clip, tmp_path: Path) -> None:
    path = cut(clip("plain.mp4"), tmp_path / "locked.mp4", 1.0)
    path.chmod(0)
    refuse(path, "must not be read")


def test_permission_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "open", denied)
    refuse(tmp_path / "locked.mp4", "must not be read by this user")


@pytest.mark.parametrize("name", ["notes.mp4", "notes.txt"])
def test_text(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("this is not a video\n" * 50)
    refuse(tmp_path / name, "not a video")


def test_garbage(tmp_path: Path) -> None:
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(20_000))
    refuse(tmp_path / "noise.mp4", "not a video")


def test_picture(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(next(iter(moving(1)))).save(tmp_path / "picture.png")
    refuse(tmp_path / "picture.png", "not a video")


def test_a_playlist_opens_nothing(tmp_path: Path, clip: Clip) -> None:
    playlist = tmp_path / "list.m3u8"
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{clip('stream.ts')}\n#EXT-X-ENDLIST\n")
    refuse(playlist, "not a video")
    concat = tmp_path / "list.mp4"
    concat.write_text(f"ffconcat version 1.0\nfile '{clip('plain.mp4')}'\n")
    refuse(concat, "not a video")


def _sound(container: av.container.OutputContainer, stream: av.AudioStream, seconds: float) -> None:
    for i in range(int(seconds * 16_000 / 1024)):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16_000, 1024 * i
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def _audio(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        _sound(container, container.add_stream("aac", rate=16_000, layout="mono"), 1)
    return path


def _with_sound(path: Path, seconds: float = 6) -> Path:
    """150 frames at 25 frames a second, and sound."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.pix_fmt, video.height, video.width = "yuv420p", 90, 130
        sound = container.add_stream("aac", rate=16_000, layout="mono")
        for i, array in enumerate(moving(150)):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        _sound(container, sound, seconds)
    return path


@pytest.mark.parametrize("name", ["sound.mp4", "sound.m4a"])
def test_audio_only(tmp_path: Path, name: str) -> None:
    refuse(_audio(tmp_path / name), "has only audio")


def test_zero_frames(tmp_path: Path) -> None:
    path = tmp_path / "nothing.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        container.start_encoding()
    refuse(path, "without frames|has no video|not a video")


def test_truncated_with_the_index_at_the_end(clip: Clip, tmp_path: Path) -> None:
    refuse(cut(clip("bframes.mp4"), tmp_path / "cut_off.mp4", 0.6), "truncated: the index of this mp4 file is missing")


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncated_with_the_index_in_front(clip: Clip, tmp_path: Path, share: float) -> None:
    whole = remux(clip("bframes.mp4"), tmp_path / "whole.mp4", {"movflags": "faststart"})
    assert probe(whole).total_frames == 60
    refuse(cut(whole, tmp_path / "cut_off.mp4", share), "truncated|broken")


@pytest.mark.parametrize("share", [0.3, 0.7])
@pytest.mark.parametrize("audio", [False, True])
def test_truncated_matroska(tmp_path: Path, share: float, audio: bool) -> None:
    if audio:
        whole = _with_sound(tmp_path / "whole.mkv")
    else:
        whole = encode(tmp_path / "whole.mkv", "libx264", "yuv420p", moving(150), options={"g": "12"})
    assert probe(whole).total_frames == 150
    refuse(cut(whole, tmp_path / "cut_off.mkv", share), "truncated|broken")


def test_sound_that_goes_on_after_the_pictures_is_no_truncation(tmp_path: Path) -> None:
    for name in ("long_sound.mkv", "long_sound.mp4"):
        assert probe(_with_sound(tmp_path / name, seconds=20)).total_frames == 150


@pytest.mark.parametrize("share", [0.4, 0.9])
def test_truncated_fragments(clip: Clip, tmp_path: Path, share: float) -> None:
    whole = remux(clip("bframes.mp4"), tmp_path / "whole.mp4", {"movflags": "frag_keyframe+empty_moov"})
    assert probe(whole).total_frames == 60
    refuse(cut(whole, tmp_path / "cut_off.mp4", share), "truncated|broken")


def test_frames_that_cannot_be_decoded(clip: Clip, tmp_path: Path) -> None:
    data = bytearray(clip("plain.mp4").read_bytes())
    start = data.find(b"mdat") + 4
    end = data.find(b"moov") - 4
    data[start:end] = bytes(end - start)
    (tmp_path / "zeros.mp4").write_bytes(data)
    refuse(tmp_path / "zeros.mp4", "cannot be decoded")


def test_pipes_and_devices(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    refuse(tmp_path / "pipe.mp4", "is a pipe or a device")
    refuse(Path("/dev/zero"), "is a pipe or a device")


def test_an_endless_hole(tmp_path: Path) -> None:
    path = tmp_path / "hole.mp4"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    began = time.monotonic()
    with pytest.raises(VideoError, match=r"hole\.mp4: "):
        probe(path, timeout=2)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("where", ["packets_of", "missing_part"])
def test_a_loop_that_nothing_interrupts_is_left_behind(clip: Clip, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    stop = threading.Event()
    monkeypatch.setattr(f"sttm_lmms.video.index.{where}", lambda *_, **__: stop.wait())
    with pytest.raises(VideoError, match=r"not read within 0.5 s; .*raise video_timeout=0.5 \(0 = no limit\)"):
        probe(clip("plain.mp4"), timeout=0.5)
    stop.set()
