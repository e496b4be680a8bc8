"""Where a benchmark's files lie: ``{data root}/{benchmark}/annotations/...`` and
``videos/{video_id}.mp4``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from sttm_lmms.benchmarks.annotations import load_questions
from sttm_lmms.benchmarks.formats import Format, get_format
from sttm_lmms.benchmarks.question import Question
from sttm_lmms.errors import AnnotationError

ROOT_VARIABLE = "STTM_DATA_ROOT"
DEFAULT_ROOT = "datasets"
VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".gif", ".mpg", ".mpeg", ".ts", ".flv", ".wmv")
"""Containers that are looked for, in this order, in small and in capital letters."""


def data_root(environ: Mapping[str, str] | None = None) -> Path:
    """``$STTM_DATA_ROOT`` as an absolute path, ``./datasets`` if it is not set."""
    environ = os.environ if environ is None else environ
    return Path(environ.get(ROOT_VARIABLE) or DEFAULT_ROOT).expanduser().absolute()


def annotation_file(root: Path, fmt: Format) -> Path:
    """The annotation file of a benchmark: the first of the known names that exists.

    Raises:
        AnnotationError: none exists; names the file, the variable and the command that makes it.
    """
    folder = root / fmt.name / "annotations"
    candidates = [folder / name for name in fmt.files]
    for path in candidates:
        if path.is_file():
            return path
    raise AnnotationError(
        f"{candidates[0]}: no such annotation file; set {ROOT_VARIABLE} to the folder that holds {fmt.name}/ "
        f"(now {root}), or make the file with 'sttm-lmms prepare {fmt.name} --raw ... --videos ... --out {root}'"
    )


def load_benchmark(benchmark: str, root: Path) -> list[Question]:
    """All questions of a benchmark under a data root; :class:`AnnotationError` as in
    ``load_questions``."""
    return load_questions(annotation_file(root, get_format(benchmark)), benchmark)


def video_folder(root: Path, benchmark: str) -> Path:
    """The folder that holds ``{video_id}.mp4``."""
    return root / benchmark / "videos"


def find_video(folder: Path, video_id: str) -> Path:
    """The file of a video, which need not exist: ``.mp4``, or another container where only that is
    there."""
    paths = [folder / f"{video_id}{suffix}" for lower in VIDEO_SUFFIXES for suffix in (lower, lower.upper())]
    return next((path for path in paths if path.is_file()), paths[0])
