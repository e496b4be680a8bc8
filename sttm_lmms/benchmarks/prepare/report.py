"""What a conversion or a check of a data folder found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import track

from sttm_lmms.benchmarks.annotations import load_questions
from sttm_lmms.benchmarks.data import annotation_file, find_video, video_folder
from sttm_lmms.benchmarks.formats import get_format
from sttm_lmms.errors import VideoError
from sttm_lmms.video import probe

# Questions and videos of the releases the paper used; EgoSchema has one question to a video.
PUBLISHED_SIZES = {
    "vnbench": (5400, 1350),
    "videomme": (2700, 900),
    "longvideobench": (1337, 753),
    "mlvu": (2174, 1242),
    "egoschema": (5031, 5031),
    "nextqa": (8564, 1000),
}


@dataclass(frozen=True)
class Report:
    """State of one benchmark in a data root.

    Attributes:
        benchmark: its name.
        annotations: the annotation file; None if a conversion did not write it.
        questions, videos: how many there are.
        missing: ids of videos without a file.
        broken: ids of videos whose file cannot be read, with the reason.
        left_out: questions that were not written because their video is missing or broken.
    """

    benchmark: str
    annotations: Path | None
    questions: int
    videos: int
    missing: tuple[str, ...] = ()
    broken: dict[str, str] = field(default_factory=dict)
    left_out: int = 0

    @property
    def complete(self) -> bool:
        """Whether the annotation file is there and every video it names can be read."""
        return self.annotations is not None and not self.missing and not self.broken

    def lines(self, most: int = 20) -> list[str]:
        """The report for people; at most ``most`` videos of a kind are named."""
        expected = PUBLISHED_SIZES[self.benchmark]
        published = f" (published: {expected[0]} on {expected[1]})"
        found = f"{self.benchmark}: {self.questions} questions on {self.videos} videos"
        lines = [found + (published if (self.questions, self.videos) != expected else "")]
        reasons = [f"{name}: {reason}" for name, reason in self.broken.items()]
        for names, state in ((self.missing, "are missing"), (reasons, "cannot be read")):
            if names:
                lines += [f"{len(names)} videos {state}:", *_listed(names, most)]
        if self.left_out:
            lines.append(
                f"{self.left_out} questions are left out with their videos: the scores are not the published ones"
            )
        return [*lines, f"annotations: {self.annotations or 'not written'}"]


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
    items = present.items() if read_videos else ()
    for video_id, file in track(items, "reading videos", transient=True) if progress and read_videos else items:
        try:
            probe(file)
        except VideoError as error:
            broken[video_id] = error.reason
    missing = tuple(video_id for video_id in files if video_id not in present)
    return Report(benchmark, path, len(questions), len(files), missing, broken)


def _listed(names: Sequence[str], most: int) -> list[str]:
    shown = [f"  {name}" for name in names[:most]]
    return shown if len(names) <= most else [*shown, f"  ... and {len(names) - most} more"]
