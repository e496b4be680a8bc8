"""What a reduction did: the numbers behind every claim, and the check that something was reduced at all."""

from __future__ import annotations

from dataclasses import dataclass, field

from sttm_lmms.errors import NothingReducedError
from sttm_lmms.types import MergedTokens


@dataclass
class Reduction:
    """One video reduced in one prefill.

    Attributes:
        row: batch row.
        grid: (T, H, W) of the video's tokens before.
        before: visual tokens before.
        after: visual tokens after.
        layer: decoder layer in front of which it happened.
        seconds: time of the merge; the device is synchronised for it only when timing is on.
        merged: boxes, counts and source map (without features); kept for the most recent prefill only.
    """

    row: int
    grid: tuple[int, int, int]
    before: int
    after: int
    layer: int
    seconds: float
    merged: MergedTokens | None = None

    @property
    def budget(self) -> float:
        """Kept visual tokens / all visual tokens."""
        return self.after / self.before


@dataclass
class Report:
    """All reductions since the context was entered, in order."""

    events: list[Reduction] = field(default_factory=list)
    prefills: int = 0
    """Forward passes that started a sequence, with or without a video."""
    phases: dict[str, float] = field(default_factory=dict)
    """Seconds of the most recent reduced prefill: ``prefill_before``, ``merge``, ``prefill_after`` the start layer."""

    @property
    def visual_tokens(self) -> int:
        """Visual tokens before reduction, over all videos."""
        return sum(event.before for event in self.events)

    @property
    def kept_tokens(self) -> int:
        """Visual tokens after reduction, over all videos."""
        return sum(event.after for event in self.events)

    @property
    def budget(self) -> float | None:
        """Kept / all visual tokens over everything seen, None if no video was seen."""
        return self.kept_tokens / self.visual_tokens if self.events else None

    @property
    def latest(self) -> list[Reduction]:
        """The reductions of the most recent prefill that had a video."""
        return [event for event in self.events if event.merged is not None]

    def add(self, events: list[Reduction]) -> None:
        """Append one prefill's reductions; maps of earlier ones are dropped to bound memory."""
        for event in self.events:
            event.merged = None
        self.events += events

    def check_reduced(self) -> None:
        """Raise :class:`NothingReducedError` unless at least one video lost tokens."""
        if not any(event.after < event.before for event in self.events):
            raise NothingReducedError(
                f"a reduction was asked for, but none of {len(self.events)} videos in {self.prefills} prefills lost a "
                "token; check that the prompts contain videos and that the thresholds or the budget can merge anything"
            )
