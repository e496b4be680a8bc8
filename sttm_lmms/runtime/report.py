"""What a reduction did: tokens before and after, times, and the check that something was reduced at
all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from sttm_lmms.errors import NothingReducedError
from sttm_lmms.runtime.timing import Mark, Phases, Stopwatch
from sttm_lmms.runtime.videos import VideoTokens
from sttm_lmms.types import MergedTokens


def check_reduced(asked: str, reduced: int, seen: str) -> None:
    """The one check that something was reduced, of a report, an engine and a run of several
    processes.

    Args:
        asked: what was asked for, in words.
        reduced: how many of what was seen were reduced.
        seen: what was seen, in words.

    Raises:
        NothingReducedError: nothing was.
    """
    if not reduced:
        raise NothingReducedError(
            f"{asked} was asked for, but none of {seen} had fewer visual tokens: the result would be the baseline's "
            "under another name; check that the prompts contain videos and that the settings can merge anything"
        )


class StageEvent(NamedTuple):
    """One video reduced at one stage: its tokens before and after; ``began`` and ``ended`` are
    marks of a stopwatch."""

    layer: int
    site: str
    before: int
    after: int
    began: Mark
    ended: Mark


@dataclass
class Reduction:
    """One video in one prefill.

    Attributes:
        row: batch row.
        grid: (T, H, W) of the video's tokens before.
        before: visual tokens before.
        after: visual tokens after the last stage.
        layer: first decoder layer in front of (or inside of) which tokens went.
        layer_tokens: for each decoder layer, the video's tokens that its attention sees at the
            prefill.
        stages: what each stage did.
        merged: boxes, counts and source map over all stages (without features); kept for the most
            recent prefill only.
        index: ``[N']`` int64, flat grid cells of the survivors in their order; for the most recent
            prefill only.
    """

    row: int
    grid: tuple[int, int, int]
    before: int
    after: int
    layer: int
    layer_tokens: tuple[int, ...]
    stages: tuple[StageEvent, ...]
    merged: MergedTokens | None
    index: torch.Tensor | None
    stopwatch: Stopwatch = field(repr=False)

    @property
    def budget(self) -> float:
        """Kept visual tokens / all visual tokens."""
        return self.after / self.before

    @property
    def layer_budget(self) -> float:
        """The same as a mean over decoder layers: what the attention of a layer sees on average."""
        return sum(self.layer_tokens) / len(self.layer_tokens) / self.before

    @property
    def seconds(self) -> float:
        """Time of the reduction over all stages; true on a device only when timing is on."""
        return sum(self.stopwatch.seconds(stage.began, stage.ended) for stage in self.stages)


def tokens_of_layers(layers: int, before: int, stages: Sequence[StageEvent]) -> tuple[int, ...]:
    """The visual tokens that each layer's attention sees. A stage in front of an MLP shows in the
    next layer."""
    counts, now = [], before
    for layer in range(layers):
        here = [stage for stage in stages if stage.layer == layer]
        for stage in here:
            if stage.site != "mlp":
                now = stage.after
        counts.append(now)
        for stage in here:
            if stage.site == "mlp":
                now = stage.after
    return tuple(counts)


@dataclass
class Report:
    """All reductions since the context was entered, in order."""

    events: list[Reduction] = field(default_factory=list)
    prefills: int = 0
    """Forward passes that started a sequence, with or without a video."""
    last_prefill: Phases | None = None
    """``prefill_before`` the first reduction, ``merge`` (all reductions) and ``prefill_after`` (the
    rest) of the most recent prefill with a video."""
    kv_seen: float = 0.0
    """KV entries that decode steps (and the last token of a prompt under a window) attended to,
    over all layers."""
    kv_stored: float = 0.0
    """KV entries that they would attend to without the method's edits."""

    @property
    def phases(self) -> dict[str, float]:
        """Seconds of ``last_prefill``; empty if there was none."""
        return self.last_prefill.seconds() if self.last_prefill else {}

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
    def kv_share(self) -> float:
        """KV entries attended to / entries there would be, for methods that edit the cache; 1
        without edits."""
        return self.kv_share_since((0.0, 0.0))

    @property
    def kv_counts(self) -> tuple[float, float]:
        """:attr:`kv_seen` and :attr:`kv_stored` now, for :meth:`kv_share_since`."""
        return self.kv_seen, self.kv_stored

    def kv_share_since(self, counts: tuple[float, float]) -> float:
        """:attr:`kv_share` of what came after :attr:`kv_counts` were ``counts``."""
        seen, stored = self.kv_seen - counts[0], self.kv_stored - counts[1]
        return seen / stored if stored else 1.0

    @property
    def latest(self) -> list[Reduction]:
        """The reductions of the most recent prefill that had a video."""
        return [event for event in self.events if event.merged is not None]

    def add_prefill(
        self,
        videos: Sequence[VideoTokens],
        stages_of: Sequence[Sequence[StageEvent]],
        began: Mark,
        stopwatch: Stopwatch,
        layers: int,
    ) -> None:
        """Append the videos of a prefill that just ended in a decoder of ``layers`` layers, and
        what each of its stages did to each video."""
        for event in self.events:  # maps of a whole run would fill the memory
            event.merged = event.index = None
        self.events += [
            Reduction(
                row=video.span.row,
                grid=video.span.grid,
                before=video.span.length,
                after=len(video.tokens.cells),
                layer=next((event.layer for event in events if event.after < event.before), layers),
                layer_tokens=tokens_of_layers(layers, video.span.length, events),
                stages=tuple(events),
                merged=video.merged(),
                index=video.tokens.flat_cells(),
                stopwatch=stopwatch,
            )
            for video, events in zip(videos, stages_of, strict=True)
        ]
        self.last_prefill = phases = Phases(stopwatch)
        stages = list({(event.layer, event.site): event for events in stages_of for event in events}.values())
        if stages:
            # The rest of the pass is all of it, without what came before the first stage and the
            # stages.
            phases.add("prefill_after", began, stopwatch.mark())
            phases.add("prefill_before", began, stages[0].began, within="prefill_after")
        for stage in stages:
            phases.add("merge", stage.began, stage.ended, within="prefill_after")

    def count_kv(self, seen: float, stored: float) -> None:
        """Count the entries that one query attends to, and those it would without edits."""
        self.kv_seen += seen
        self.kv_stored += stored

    def check_reduced(self) -> None:
        """Raise :class:`NothingReducedError` unless at least one video lost tokens (or entries of
        its KV cache)."""
        reduced = any(min(event.layer_tokens) < event.before for event in self.events) or self.kv_share < 1.0
        check_reduced("a reduction", reduced, f"{len(self.events)} videos in {self.prefills} prefills")
