"""From an official release to a folder that the tasks can read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sttm_lmms.benchmarks.annotations import parse_questions
from sttm_lmms.benchmarks.data import video_folder
from sttm_lmms.benchmarks.formats import get_format
from sttm_lmms.benchmarks.prepare.releases import (
    RELEASES,
    Converted,
    Release,
    convert_release,
    egoschema_answers,
    with_question_numbers,
)
from sttm_lmms.benchmarks.prepare.report import Report
from sttm_lmms.benchmarks.prepare.sources import Record
from sttm_lmms.benchmarks.prepare.videos import Durations, VideoIndex, duration_class, place_video


def prepare(
    benchmark: str,
    raw: Path,
    videos: Path,
    out: Path,
    *,
    copy: bool = False,
    skip_missing: bool = False,
    ignore: Sequence[str] = (),
    progress: bool = False,
) -> Report:
    """Convert the release of a benchmark to ``{out}/{benchmark}/annotations`` and ``videos``.

    A second run goes on where an interrupted one stopped: videos that are in place and lengths that are known stay. The
    annotation file is written last, and only if every video is there and readable.

    Args:
        benchmark: a name of ``FORMATS``.
        raw: the annotation file of the release, or the folder that holds it.
        videos: folder of the videos, searched with all folders below it.
        out: the data root (``$STTM_DATA_ROOT``).
        copy: copy the videos instead of linking to them.
        skip_missing: write the annotations without the questions whose video is missing or broken.
        ignore: unknown keys of the release that do not matter.
        progress: show a progress bar.

    Raises:
        ValueError: the benchmark is unknown.
        AnnotationError: the release or the folder of the videos is not as expected.
    """
    fmt = get_format(benchmark)
    release = RELEASES[benchmark]
    converted = _converted(benchmark, raw, ignore)
    sources = {item.video_id: item.source for item in converted}

    index = VideoIndex(videos)
    folder = video_folder(out, benchmark)
    folder.mkdir(parents=True, exist_ok=True)
    located = {video_id: index.find(source) or index.find(video_id) for video_id, source in sources.items()}
    found = {video_id: path for video_id, path in located.items() if path is not None}
    placed = {video_id: folder / f"{video_id}{path.suffix.lower()}" for video_id, path in found.items()}
    for video_id, target in placed.items():
        place_video(found[video_id], target, copy=copy)
    seconds, broken = Durations(out / benchmark / "durations.json").measure(placed, progress=progress)

    missing = tuple(video_id for video_id in sources if video_id not in found)
    kept = [item for item in converted if item.video_id in seconds]
    written = None
    if kept and (skip_missing or len(kept) == len(converted)):
        written = out / benchmark / "annotations" / fmt.files[0]
        _write(written, [_finished(item, seconds[item.video_id], release) for item in kept])
    return Report(
        benchmark=benchmark,
        annotations=written,
        questions=len(converted),
        videos=len(sources),
        missing=missing,
        broken=broken,
        left_out=len(converted) - len(kept) if written else 0,
    )


def _converted(benchmark: str, raw: Path, ignore: Sequence[str]) -> list[Converted]:
    converted = list(with_question_numbers(convert_release(RELEASES[benchmark], raw, ignore)))
    if benchmark == "egoschema":
        answers = egoschema_answers(raw)
        converted = [replace(item, record={**item.record, "answer": answers.get(item.video_id)}) for item in converted]
    measured = {"duration": ""} if RELEASES[benchmark].measured else {}
    parse_questions([item.record | measured for item in converted], benchmark, raw)
    return converted


def _finished(item: Converted, seconds: float, release: Release) -> Record:
    if not release.measured:
        return item.record
    return {**item.record, "duration": duration_class(seconds), "video_second": seconds}


def _write(path: Path, records: Sequence[Record]) -> None:
    """The file gets its name only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(records, indent=1, ensure_ascii=False), encoding="utf-8")
    part.replace(path)
