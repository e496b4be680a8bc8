"""Finds the videos of a release, puts them where the tasks look for them, and measures how long they last."""

from __future__ import annotations

import json
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.progress import track

from sttm_lmms.benchmarks.data import VIDEO_SUFFIXES
from sttm_lmms.errors import AnnotationError, VideoError
from sttm_lmms.video import probe

SHORT, MEDIUM = 60.0, 120.0
SAVE_EVERY = 50


def duration_class(seconds: float) -> str:
    """``"short"`` below one minute, ``"medium"`` below two, else ``"long"``."""
    return "short" if seconds < SHORT else "medium" if seconds < MEDIUM else "long"


class VideoIndex:
    """The video files below a folder, by name or by last folder and name, both without suffix.

    Raises:
        AnnotationError: the folder does not exist.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise AnnotationError(f"{folder}: no such folder; pass the folder of the videos as --videos")
        self._paths: dict[str, list[Path]] = defaultdict(list)
        for parent, _, names in os.walk(folder, followlinks=True):
            for name in sorted(names):
                path = Path(parent) / name
                if path.suffix.lower() in VIDEO_SUFFIXES:
                    self._paths[path.stem].append(path)
                    self._paths[f"{path.parent.name}/{path.stem}"].append(path)

    def find(self, source: str) -> Path | None:
        """The file called ``source`` (see :class:`~sttm_lmms.benchmarks.prepare.releases.Converted`), None without one.

        Raises:
            AnnotationError: two different files have this name.
        """
        paths = sorted({path.resolve(): path for path in self._paths.get(source, [])}.values())
        if len(paths) > 1:
            raise AnnotationError(f"two videos are called {source}: {paths[0]} and {paths[1]}; pass a smaller folder")
        return paths[0] if paths else None


def place_video(source: Path, target: Path, *, copy: bool) -> None:
    """Make ``target`` a link to (or a copy of) ``source``; nothing happens where it is one already.

    A copy gets its name only when it is complete, so that an interrupted run leaves no half file behind.
    """
    if target.exists() and (target.samefile(source) or target.stat().st_size == source.stat().st_size):
        return
    target.unlink(missing_ok=True)  # a link whose target is gone
    if copy:
        part = target.with_name(f"{target.name}.part")
        shutil.copyfile(source, part)
        part.replace(target)
    else:
        target.symlink_to(source.absolute())


class Durations:
    """Seconds of each video, kept in a file so that an interrupted run goes on where it stopped.

    A measurement counts as long as the video has the size and the time of change it was made with.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, tuple[int, int, float]] = {}
        if path.is_file():
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                self._known = {name: (int(size), int(at), float(s)) for name, (size, at, s) in content.items()}
            except (ValueError, TypeError, AttributeError):
                self._known = {}  # half written; everything is measured again

    def measure(self, videos: dict[str, Path], *, progress: bool) -> tuple[dict[str, float], dict[str, str]]:
        """Seconds of each video by id, and the reason for each that cannot be read."""
        seconds: dict[str, float] = {}
        broken: dict[str, str] = {}
        for number, (video_id, path) in enumerate(_shown(videos.items(), len(videos), progress), start=1):
            stat = path.stat()
            *file, known = self._known.get(video_id, (0, 0, 0.0))
            try:
                same = file == [stat.st_size, stat.st_mtime_ns]
                seconds[video_id] = known if same else probe(path).duration
            except VideoError as error:
                broken[video_id] = error.reason
                continue
            self._known[video_id] = (stat.st_size, stat.st_mtime_ns, seconds[video_id])
            if number % SAVE_EVERY == 0:
                self._save()
        self._save()
        return seconds, broken

    def _save(self) -> None:
        part = self._path.with_name(f"{self._path.name}.part")
        part.write_text(json.dumps(self._known, indent=0), encoding="utf-8")
        part.replace(self._path)


def _shown(
    items: Iterable[tuple[str, Path]], total: int, progress: bool
) -> Iterator[tuple[str, Path]] | Iterable[tuple[str, Path]]:
    return track(items, description="measuring videos", total=total, transient=True) if progress else items
