"""From an official release to a folder that the tasks can read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from sttm_lmms.benchmarks.annotations import parse_questions
from sttm_lmms.benchmarks.data import video_folder
from sttm_lmms.benchmarks.formats import duration_class, get_format
from sttm_lmms.benchmarks.prepare.releases import RELEASES, convert_release
from sttm_lmms.benchmarks.prepare.report import Report
from sttm_lmms.benchmarks.prepare.videos import find_videos, measure, place_video, write_whole


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

    A second run goes on where an interrupted one stopped: videos that are in place and lengths that
    are known stay. The annotation file is written last, and only if every video is there and
    readable.

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
    measured = RELEASES[benchmark].measured
    converted = convert_release(benchmark, raw, ignore)
    to_be_measured = {"duration": ""} if measured else {}
    parse_questions([record | to_be_measured for record, _ in converted], benchmark, raw)

    names = {record[fmt.video_key]: (source, record[fmt.video_key]) for record, source in converted}
    found = find_videos(videos, names)
    folder = video_folder(out, benchmark)
    folder.mkdir(parents=True, exist_ok=True)
    placed = {video_id: folder / f"{video_id}{path.suffix.lower()}" for video_id, path in found.items()}
    for video_id, target in placed.items():
        place_video(found[video_id], target, copy=copy)
    seconds, broken = measure(placed, out / benchmark / "durations.json", progress=progress)

    records = [record for record, _ in converted if record[fmt.video_key] in seconds]
    written = None
    if records and (skip_missing or len(records) == len(converted)):
        for record in records if measured else ():
            length = seconds[record[fmt.video_key]]
            record |= {"duration": duration_class(length), "video_second": length}
        written = out / benchmark / "annotations" / fmt.files[0]
        write_whole(written, json.dumps(records, indent=1, ensure_ascii=False))
    return Report(
        benchmark=benchmark,
        annotations=written,
        questions=len(converted),
        videos=len(names),
        missing=tuple(video_id for video_id in names if video_id not in found),
        broken=broken,
        left_out=len(converted) - len(records) if written else 0,
    )
