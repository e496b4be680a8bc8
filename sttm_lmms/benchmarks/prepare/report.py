"""What a conversion or a check of a data folder found."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

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
        found = f"{self.benchmark}: {self.questions} questions on {self.videos} videos"
        if (self.questions, self.videos) != (expected := PUBLISHED_SIZES[self.benchmark]):
            found += f" (published: {expected[0]} on {expected[1]})"
        lines = [found]
        if self.missing:
            lines += [f"{len(self.missing)} videos are missing:", *_listed(self.missing, most)]
        if self.broken:
            reasons = [f"{name}: {reason}" for name, reason in self.broken.items()]
            lines += [f"{len(self.broken)} videos cannot be read:", *_listed(reasons, most)]
        if self.left_out:
            lines.append(
                f"{self.left_out} questions are left out with their videos: the scores are not the published ones"
            )
        lines.append(f"annotations: {self.annotations or 'not written'}")
        return lines


def _listed(names: tuple[str, ...] | list[str], most: int) -> list[str]:
    shown = [f"  {name}" for name in names[:most]]
    return shown if len(names) <= most else [*shown, f"  ... and {len(names) - most} more"]
