"""Videos that are no video file: a folder of pictures, lists of pictures, frames in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from video_clips import moving

from sttm_lmms.errors import VideoError
from sttm_lmms.video import is_animated, probe, video_of_frames


def folder_of(path: Path, names: list[str]) -> list[Path]:
    """Pictures that all differ, one for each name."""
    path.mkdir(exist_ok=True)
    for name, array in zip(names, moving(len(names)), strict=True):
        Image.fromarray(array).save(path / name)
    return [path / name for name in names]


def test_a_folder_is_read_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    names = ["frame_1.png", "frame_2.png", "frame_9.PNG", "frame_10.png", "frame_100.bmp"]
    files = folder_of(tmp_path / "frames", names)
    (tmp_path / "frames" / "notes.txt").write_text("no picture")
    (tmp_path / "frames" / ".frame_3.png").write_bytes(files[0].read_bytes())
    expected = np.stack(list(moving(5)))
    for source in (tmp_path / "frames", str(tmp_path / "frames"), files, [Image.open(file) for file in files]):
        video = video_of_frames(source, 2.0)
        np.testing.assert_array_equal(video.frames, expected)
        assert (video.timestamps, video.duration, video.sample_fps) == ([0, 0.5, 1, 1.5, 2], 2.5, 2.0)
    np.testing.assert_array_equal(video_of_frames(files[::-1], 2.0).frames, expected[::-1])


def test_more_pictures_than_are_wanted_are_spread(tmp_path: Path) -> None:
    files = folder_of(tmp_path / "frames", [f"{n}.png" for n in range(20)])
    video = video_of_frames(tmp_path / "frames", 4.0, max_frames=4)
    assert video.indices == [0, 6, 12, 19]
    assert (video.duration, video.sample_fps, video.timestamps[-1]) == (5.0, 0.8, 4.75)
    np.testing.assert_array_equal(video.frames, np.stack([np.array(Image.open(files[n])) for n in video.indices]))


def test_pictures_are_upright(tmp_path: Path) -> None:
    (array,) = moving(1)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right by 90 degrees
    Image.fromarray(array).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(video_of_frames([tmp_path / "turned.png"], 1.0).frames[0], np.rot90(array, -1))


def test_what_is_no_folder_of_frames(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="is a folder without pictures"):
        video_of_frames(tmp_path, 1.0)
    folder_of(tmp_path, ["a.png", "b.png"])
    Image.new("RGB", (8, 9)).save(tmp_path / "c.png")
    with pytest.raises(VideoError, match="holds pictures of several sizes"):
        video_of_frames(tmp_path, 1.0)
    (tmp_path / "c.png").write_bytes(b"no picture")
    with pytest.raises(VideoError, match=r"c\.png: not a picture"):
        video_of_frames(tmp_path, 1.0)


def test_a_picture_that_stands_still_is_no_video(tmp_path: Path) -> None:
    images = [Image.fromarray(array) for array in moving(2)]
    for suffix in (".gif", ".webp", ".png"):
        images[0].save(tmp_path / f"still{suffix}")
        images[0].save(tmp_path / f"film{suffix}", save_all=True, append_images=images[1:])
        assert not is_animated(tmp_path / f"still{suffix}")
        assert is_animated(tmp_path / f"film{suffix}")
    with pytest.raises(VideoError, match="it is a picture"):
        probe(tmp_path / "still.webp")
    assert not is_animated(tmp_path / "missing.gif")
