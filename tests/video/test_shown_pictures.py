"""Files of which a player shows other pictures, or at other times, than their packets suggest at
first sight."""

from __future__ import annotations

import logging
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from video_clips import encode, moving, remux

from sttm_lmms.video import VideoInfo, available_backends, probe, read_frames, sample_uniform_fps, write_video
from sttm_lmms.video.pyav_reader import to_rgb


def shown(path: Path, stream: int = 0) -> tuple[np.ndarray, list[float]]:
    """The slow obvious way: every picture that decoding the whole file gives, and when it is
    shown."""
    pictures, times = [], []
    with av.open(str(path)) as container:
        video = container.streams.video[stream]
        video.thread_type = "NONE"
        for packet in container.demux(video):
            try:
                for frame in video.decode(packet):
                    pictures.append(to_rgb(frame))
                    times.append(float((frame.pts or 0) * video.time_base))
            except av.FFmpegError:
                continue
    return np.stack(pictures), [time - min(times) for time in times]


def is_what_is_shown(path: Path, stream: int = 0) -> VideoInfo:
    """Same pictures in the same order, all of them, by seeking and in one go, at the same times."""
    pictures, times = shown(path, stream)
    info = probe(path)
    video = read_frames(info, range(info.total_frames))
    np.testing.assert_array_equal(video.frames, pictures)
    np.testing.assert_allclose(video.timestamps, times, atol=0.02)
    for number in (info.total_frames - 1, info.total_frames // 2, 0):
        np.testing.assert_array_equal(read_frames(info, [number]).frames[0], pictures[number])
    return info


def timed(path: Path, codec: str, times: Sequence[float], rate: int = 25, **options: str) -> Path:
    """Frames at these seconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for time, array in zip(times, moving(len(times)), strict=True):
            stream.height, stream.width = array.shape[:2]
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts, frame.time_base = round(1000 * time), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def damaged(source: Path, target: Path, numbers: Sequence[int]) -> Path:
    """A copy with zeros in place of the content of these packets."""
    data = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    for number in numbers:
        start, size = places[number]
        data[start + 8 : start + size] = bytes(size - 8)
    target.write_bytes(data)
    return target


def _joined(path: Path, *parts: Path) -> Path:
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("plain") / "plain.mp4", moving(60), 25, bframes=2, gop=12)


@pytest.mark.parametrize("name", ["late.mkv", "late.mp4", "late.ts", "late.flv", "fragments.mp4"])
def test_a_first_picture_that_is_not_at_time_0(plain: Path, tmp_path: Path, name: str) -> None:
    fragments = {"movflags": "frag_keyframe+empty_moov"} if name == "fragments.mp4" else {}
    info = is_what_is_shown(remux(plain, tmp_path / name, fragments, shift=-4.0))
    assert (info.total_frames, info.fps, info.duration) == (60, 25.0, 2.4)


TIMES = [*np.arange(0, 2, 0.04), *np.arange(10.0, 101.0, 10.0)]


@pytest.mark.parametrize(("name", "codec"), [("v.mkv", "libx264"), ("v.webm", "libvpx"), ("v.ts", "libx264")])
def test_a_variable_rate(tmp_path: Path, name: str, codec: str) -> None:
    info = is_what_is_shown(timed(tmp_path / name, codec, TIMES))
    assert info.total_frames == 60
    assert info.duration == pytest.approx(100, abs=10)
    assert info.fps == pytest.approx(60 / info.duration)
    assert sample_uniform_fps(info, 1.0, 128) == list(range(60)), "there are no more pictures than a frame a second"
    at = info.seconds(sample_uniform_fps(info, 0.1, 128))
    assert at == pytest.approx(TIMES[:1] + TIMES[50:], abs=0.01), "the frames shown every ten seconds"
    few = info.seconds(sample_uniform_fps(info, 0.1, 6))
    assert np.diff(few) == pytest.approx([20.0] * 5, abs=2), "evenly spread in time"


def test_rounded_times_are_a_constant_rate(tmp_path: Path) -> None:
    info = probe(timed(tmp_path / "rounded.mkv", "libx264", [n / 30 for n in range(60)], rate=30))
    assert info.times is None
    assert info.seconds([0, 30]) == [0.0, 30 / info.fps]


@pytest.mark.parametrize("suffix", [".webm", ".mkv", ".avi"])
def test_pictures_that_are_never_shown(tmp_path: Path, suffix: str) -> None:
    """VP8 frames whose header says so, which others refer to: bit 4 of the first byte (RFC 6386,
    9.1)."""
    whole = encode(tmp_path / f"whole{suffix}", "libvpx", "yuv420p", moving(40), options={"auto-alt-ref": "0"})
    data = bytearray(whole.read_bytes())
    hidden = (3, 11, 12, 39)
    with av.open(str(whole)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    for number in hidden:
        data[data.find(packets[number])] &= ~(1 << 4)
    (tmp_path / f"hidden{suffix}").write_bytes(data)
    info = probe(tmp_path / f"hidden{suffix}")
    video = read_frames(info, range(info.total_frames))
    every = [number for number in range(40) if number not in hidden]
    np.testing.assert_array_equal(video.frames, shown(whole)[0][every])
    assert video.timestamps == pytest.approx([number / 25 for number in every])
    assert info.index is not None
    assert info.index.hidden
    for backend in available_backends():
        np.testing.assert_array_equal(read_frames(info, [3, 20], backend).frames, video.frames[[3, 20]])


@pytest.mark.parametrize(("codec", "name"), [("libvpx-vp9", "vp9.webm"), ("libvpx-vp9", "vp9.mp4")])
def test_several_frames_in_one_packet(tmp_path: Path, codec: str, name: str) -> None:
    options = {"auto-alt-ref": "1", "lag-in-frames": "16", "b": "100k", "deadline": "realtime"}
    info = is_what_is_shown(encode(tmp_path / name, codec, "yuv420p", moving(60), options=options))
    assert (info.total_frames, info.duration) == (60, 2.4)


@pytest.mark.parametrize("name", ["h264.avi", "mpeg4.avi"])
def test_an_order_that_avi_does_not_tell(tmp_path: Path, name: str) -> None:
    codec = {"h264.avi": "libx264", "mpeg4.avi": "mpeg4"}[name]
    path = encode(tmp_path / name, codec, "yuv420p", moving(60), options={"bf": "2"})
    info = probe(path)
    np.testing.assert_array_equal(read_frames(info, range(info.total_frames)).frames, shown(path)[0])
    assert (info.total_frames, info.fps, info.duration) == (60, 25.0, 2.4)


def test_frames_that_avi_drops(tmp_path: Path) -> None:
    info = is_what_is_shown(timed(tmp_path / "dropped.avi", "libx264", [0.0, 0.4, 0.8, 4.0], bf="0"))
    assert info.total_frames == 4
    assert info.duration > 3.5


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("numbers", [[30], [59], [5, 40]], ids=str)
def test_broken_packets(
    plain: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str, numbers: list[int]
) -> None:
    """In place of each picture that cannot be decoded comes the one before it; all others are
    there."""
    path = damaged(remux(plain, tmp_path / f"whole{suffix}", {}), tmp_path / f"broken{suffix}", numbers)
    pictures, times = shown(path)
    assert len(pictures) < 60
    info = probe(path)
    assert (info.total_frames, info.fps) == (60, 25.0)
    with caplog.at_level(logging.WARNING):
        video = read_frames(info, range(60))
    for number, frame in enumerate(video.frames):
        before = max((k for k, time in enumerate(times) if time <= number / 25 + 0.01), default=0)
        np.testing.assert_array_equal(frame, pictures[before])
    (line,) = caplog.messages
    assert line.startswith(f"{path}: {60 - len(pictures)} of the 60 frames asked for cannot be decoded")


def test_a_broken_first_packet(plain: Path, tmp_path: Path) -> None:
    path = damaged(plain, tmp_path / "broken.mp4", [0])
    pictures, _ = shown(path)
    info = probe(path)
    np.testing.assert_array_equal(read_frames(info, range(info.total_frames)).frames, pictures)


@pytest.mark.parametrize("lost", [[40], [15, 33, 52]], ids=str)
def test_lost_pieces_of_a_transport_stream(plain: Path, tmp_path: Path, lost: list[int]) -> None:
    data = remux(plain, tmp_path / "whole.ts", {}).read_bytes()
    pieces = [data[at : at + 188] for at in range(0, len(data), 188) if at // 188 not in lost]
    (tmp_path / "lossy.ts").write_bytes(b"".join(pieces))
    pictures, _ = shown(tmp_path / "lossy.ts")
    info = probe(tmp_path / "lossy.ts")
    np.testing.assert_array_equal(read_frames(info, range(info.total_frames)).frames, pictures)
    assert info.duration == pytest.approx(2.4, abs=0.1)


def test_joined_transport_streams(plain: Path, tmp_path: Path) -> None:
    parts = [remux(plain, tmp_path / "a.ts", {}), remux(plain, tmp_path / "b.ts", {}, shift=-100)]
    for first, second in (parts, parts[::-1], parts[:1] * 2):
        path = _joined(tmp_path / "joined.ts", first, second)
        pictures, _ = shown(path)
        info = probe(path)
        np.testing.assert_array_equal(read_frames(info, range(info.total_frames)).frames, pictures)
        assert (info.total_frames, info.duration) == (120, pytest.approx(4.8, abs=0.1))


def test_a_stream_without_times(tmp_path: Path) -> None:
    path = encode(tmp_path / "raw.h264", "libx264", "yuv420p", moving(30))
    info = probe(path)
    np.testing.assert_array_equal(read_frames(info, range(30)).frames, shown(path)[0])
    assert (info.total_frames, info.duration) == (30, 1.2)


@pytest.mark.parametrize("default", [0, 1, None])
def test_several_video_streams(tmp_path: Path, default: int | None) -> None:
    """The one that is marked as default, else the largest."""
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=25) for _ in range(2)]
        for number, (stream, side) in enumerate(zip(streams, (64, 96), strict=True)):
            stream.width = stream.height = side
            stream.pix_fmt = "yuv420p"
            stream.disposition = int(number == default)
        for i in range(10):
            for stream in streams:
                frame = av.VideoFrame.from_ndarray(np.full((stream.height, stream.width, 3), 20 * i, np.uint8))
                frame.pts, frame.time_base = i, Fraction(1, 25)
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode())
    taken = 1 if default is None else default
    assert is_what_is_shown(path, taken).width == (64, 96)[taken]


ONE = 1 << 16
MATRICES = {
    "mirrored": ((-ONE, 0, 0, ONE), lambda image: image[:, ::-1]),
    "upside down": ((ONE, 0, 0, -ONE), lambda image: image[::-1]),
    "mirrored, turned left": ((0, -ONE, -ONE, 0), lambda image: np.rot90(image[::-1])),
    "mirrored, turned right": ((0, ONE, ONE, 0), lambda image: np.rot90(image[::-1], -1)),
}


@pytest.mark.parametrize("name", MATRICES)
def test_the_whole_display_matrix_counts(plain: Path, tmp_path: Path, name: str) -> None:
    (a, b, c, d), change = MATRICES[name]
    data = bytearray(plain.read_bytes())
    place = data.find(b"tkhd") + 4 + 40
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(data)
    info = probe(tmp_path / "turned.mp4")
    expected = change(read_frames(plain, [7]).frames[0])
    assert (info.height, info.width) == expected.shape[:2]
    np.testing.assert_array_equal(read_frames(info, [7]).frames[0], expected)


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_animated_pictures(tmp_path: Path, suffix: str) -> None:
    images = [Image.fromarray(array) for array in moving(8)]
    path = tmp_path / f"film{suffix}"
    durations = [100] * 4 + [500] * 4
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, lossless=True)
    info = probe(path)
    assert (info.total_frames, info.seconds([3, 7])) == (8, pytest.approx([0.3, 1.9]))
    with Image.open(path) as film:
        for number in (7, 0, 3):
            film.seek(number)
            np.testing.assert_array_equal(read_frames(info, [number]).frames[0], np.array(film.convert("RGB")))


def test_intra_refresh(tmp_path: Path) -> None:
    """Recovery points are marked as key frames, many frames before a picture is whole."""
    is_what_is_shown(
        encode(
            tmp_path / "refresh.mp4",
            "libx264",
            "yuv420p",
            moving(60),
            options={"x264-params": "intra-refresh=1:keyint=12"},
        )
    )
