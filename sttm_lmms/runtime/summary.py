"""Totals of a run, from its answers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sttm_lmms.provenance import RunSummary
from sttm_lmms.runtime.requests import Answer, Counters, Failure


class Totals:
    """Accumulates answers; keeps a few numbers of each, never the answers."""

    def __init__(self) -> None:
        self._shares: list[float] = []
        self._before: list[int] = []
        self._after: list[int] = []
        self.reduced = 0
        self.answered = 0
        self._ttft: list[float] = []
        self._ttft_first: list[float] = []
        self._prefill: list[float] = []
        self._decode_seconds = 0.0
        self._decode_tokens = 0

    def add(self, answer: Answer) -> None:
        """Count one answer; answers about unreadable videos count as questions only."""
        if answer.error is not None:
            return
        self.count_reduction(answer.visual_tokens, answer.kept_tokens)
        if "ttft" in answer.timing:
            self._ttft.append(answer.timing["ttft"])
            if not answer.reused:
                self._ttft_first.append(answer.timing["ttft"])
                self._prefill.append(answer.timing["prefill"])
        if answer.output_tokens > 1 and "decode" in answer.timing:
            self._decode_seconds += answer.timing["decode"]
            self._decode_tokens += answer.output_tokens - 1

    def count_reduction(self, before: int, after: int) -> None:
        """Count the visual tokens of one answer, before and after reduction."""
        self.answered += 1
        self.reduced += after < before
        if before:
            self._before.append(before)
            self._after.append(after)
            self._shares.append(after / before)

    def __add__(self, other: Totals) -> Totals:
        """The totals of two processes."""
        both = Totals()
        for name in vars(both):
            setattr(both, name, getattr(self, name) + getattr(other, name))
        return both

    def summary(self, counters: Counters, failures: list[Failure], config: Any, peak_memory: int | None) -> RunSummary:
        """The run's numbers. The first prefill is a warm-up and left out of the times where there are others."""
        warm = slice(1, None) if len(self._ttft_first) > 1 else slice(None)
        return RunSummary(
            questions=counters.questions,
            failures=len(failures),
            videos_decoded=counters.videos_decoded,
            vision_passes=counters.vision_passes,
            prefills=counters.prefills,
            reduction_asked=int(config is not None),
            reduced_share=self.reduced / max(1, self.answered),
            requested_budget=getattr(config, "budget", None),
            tokens_before=_mean(self._before),
            tokens_after=_mean(self._after),
            kept_share_mean=_mean(self._shares),
            kept_share_min=min(self._shares, default=None),
            kept_share_max=max(self._shares, default=None),
            ttft_s=_mean(self._ttft[1:] if len(self._ttft) > 1 else self._ttft),
            ttft_first_s=_mean(self._ttft_first[warm]),
            prefill_s=_mean(self._prefill[warm]),
            decode_s_per_token=self._decode_seconds / self._decode_tokens if self._decode_tokens else None,
            peak_memory_bytes=peak_memory,
        )


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return sum(values) / len(values) if values else None
