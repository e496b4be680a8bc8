"""Whether a data folder has what a benchmark needs."""

from __future__ import annotations

from pathlib import Path

from rich.progress import track

from sttm_lmms.benchmarks.annotations import load_questions
from sttm_lmms.benchmarks.data import annotation_file, find_video, video_folder
from sttm_lmms.benchmarks.formats import get_format
from sttm_lmms.benchmarks.prepare.report import Report
from sttm_lmms.errors import VideoError
from sttm_lmms.video import probe


def check(data_root: Path, benchmark: str, *, read_videos: bool = False, progress: bool = False) -> Report:
    """Read a benchmark's annotations and look for its videos.

    Args:
        data_root: the folder that holds ``{benchmark}/annotations`` and ``{benchmark}/videos``.
        benchmark: a name of ``FORMATS``.
        read_videos: also open every video (minutes for a large benchmark).
        progress: show a progress bar.

    Raises:
        ValueError: the benchmark is unknown.
        AnnotationError: the annotation file is missing or malformed; names the file and the record.
    """
    path = annotation_file(data_root, get_format(benchmark))
    questions = load_questions(path, benchmark)
    folder = video_folder(data_root, benchmark)
    files = {video_id: find_video(folder, video_id) for video_id in dict.fromkeys(q.video_id for q in questions)}
    present = {video_id: file for video_id, file in files.items() if file.is_file()}
    broken: dict[str, str] = {}
    if read_videos:
        shown = track(present.items(), description="reading videos", transient=True) if progress else present.items()
        for video_id, file in shown:
            try:
                probe(file)
            except VideoError as error:
                broken[video_id] = error.reason
    missing = tuple(video_id for video_id in files if video_id not in present)
    return Report(benchmark, path, len(questions), len(files), missing, broken)
