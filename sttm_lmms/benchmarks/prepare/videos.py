"""Finds the videos of a release, puts them where the tasks look for them, and measures how long
they last."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from rich.progress import track

from sttm_lmms.benchmarks.data import VIDEO_SUFFIXES
from sttm_lmms.errors import AnnotationError, VideoError
from sttm_lmms.video import probe

SAVE_EVERY = 50


def find_videos(folder: Path, names: Mapping[str, tuple[str, ...]]) -> dict[str, Path]:
    """The file of each video that lies somewhere below a folder.

    Args:
        names: video id -> what its file may be called: a name, or its last folder and its name,
            without suffix.

    Raises:
        AnnotationError: the folder does not exist, or two different files have one name.
    """
    if not folder.is_dir():
        raise AnnotationError(f"{folder}: no such folder; pass the folder of the videos as --videos")
    by_name: dict[str, dict[Path, Path]] = {}  # by the file itself, which links of a download cache name otherwise
    for parent, _, files in os.walk(folder, followlinks=True):
        for path in (Path(parent) / file for file in files):
            if path.suffix.lower() in VIDEO_SUFFIXES:
                for name in (path.stem, f"{path.parent.name}/{path.stem}"):
                    by_name.setdefault(name, {})[path.resolve()] = path
    found = {}
    for video_id, candidates in names.items():
        for name in [name for name in candidates if name in by_name][:1]:
            first, *others = sorted(by_name[name].values())
            if others:
                raise AnnotationError(f"two videos are called {name}: {first} and {others[0]}; pass a smaller folder")
            found[video_id] = first
    return found


def place_video(source: Path, target: Path, *, copy: bool) -> None:
    """Make ``target`` a link to (or a copy of) ``source``; nothing happens where it is one already.

    A copy gets its name only when it is complete, so that an interrupted run leaves no half file
    behind.
    """
    if target.exists() and (target.samefile(source) or target.stat().st_size == source.stat().st_size):
        return
    target.unlink(missing_ok=True)  # a link whose target is gone, or another video
    if copy:
        part = target.with_name(f"{target.name}.part")
        shutil.copyfile(source, part)
        part.replace(target)
    else:
        target.symlink_to(source.absolute())


def measure(videos: Mapping[str, Path], cache: Path, *, progress: bool) -> tuple[dict[str, float], dict[str, str]]:
    """Seconds of each video by id, and the reason for each that cannot be read.

    Args:
        cache: file of what is known, so that an interrupted run goes on where it stopped. A
            measurement counts as long as the video has the size and the time of change it was made
            with.
        progress: show a progress bar.
    """
    try:
        known = {name: tuple(entry) for name, entry in json.loads(cache.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        known = {}  # not there or half written; everything is measured again
    seconds: dict[str, float] = {}
    broken: dict[str, str] = {}
    items = track(videos.items(), "measuring videos", transient=True) if progress else videos.items()
    for number, (video_id, path) in enumerate(items, start=1):
        stat = path.stat()
        file = (stat.st_size, stat.st_mtime_ns)
        try:
            if known.get(video_id, ())[:2] != file:
                known[video_id] = (*file, probe(path).duration)
            seconds[video_id] = float(known[video_id][2])
        except VideoError as error:
            broken[video_id] = error.reason
        if number % SAVE_EVERY == 0 or number == len(videos):
            write_whole(cache, json.dumps(known, indent=0))
    return seconds, broken


def write_whole(path: Path, text: str) -> None:
    """Write a file that gets its name only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
