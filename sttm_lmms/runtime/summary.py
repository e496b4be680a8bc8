"""Totals of a run, from its answers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sttm_lmms.provenance import RunSummary
from sttm_lmms.runtime.report import check_reduced
from sttm_lmms.runtime.requests import Answer, Counters, Failure, LogLikelihood

PHASES = ("video_decode", "preprocess", "vision", "prefill_before", "merge", "prefill_after", "prefill")


class Totals:
    """Accumulates answers; keeps a few numbers of each, never the answers."""

    def __init__(self) -> None:
        self._shares: list[float] = []
        self._before: list[int] = []
        self._after: list[int] = []
        self._layer_tokens: list[float] = []
        self._kv_shares: list[float] = []
        self.reduced = 0
        self.answered = 0
        self._ttft: list[float] = []
        self._warm_up: list[dict[str, float]] = []
        self._paid: list[dict[str, float]] = []
        self._decode_seconds = 0.0
        self._decode_tokens = 0

    def add(self, answer: Answer | LogLikelihood) -> None:
        """Count one answer; answers about unreadable videos count as questions only."""
        if answer.error is not None:
            return
        self.count_reduction(answer.visual_tokens, answer.kept_tokens, answer.layer_tokens, answer.kv_share)
        if isinstance(answer, LogLikelihood):
            return
        timing = answer.timing
        if timing and not answer.reused:
            times = dict(timing)
            if "ttft" in timing:
                seen = sum(timing.get(phase, 0.0) for phase in ("video_decode", "preprocess", "vision"))
                times["ttft_end_to_end"] = seen + timing["ttft"]
            (self._paid if self._warm_up else self._warm_up).append(times)
        if "ttft" in timing:
            self._ttft.append(timing["ttft"])
        if answer.output_tokens > 1 and "decode" in timing:
            self._decode_seconds += timing["decode"]
            self._decode_tokens += answer.output_tokens - 1

    def count_reduction(self, before: int, after: int, layer_tokens: float, kv_share: float = 1.0) -> None:
        """Count the visual tokens of one answer before and after reduction, their mean over layers, and the share of
        the KV entries that decode steps attended to."""
        self.answered += 1
        self.reduced += layer_tokens < before or kv_share < 1.0
        if before:
            self._before.append(before)
            self._after.append(after)
            self._shares.append(after / before)
            self._layer_tokens.append(layer_tokens)
            self._kv_shares.append(kv_share)

    def check_reduced(self, asked: str | None) -> None:
        """Raise :class:`NothingReducedError` if a reduction was ``asked`` for (in words, None for the baseline) and no
        answer had fewer tokens."""
        if asked is not None and self.answered:
            check_reduced(asked, self.reduced, f"{self.answered} answers")

    def __add__(self, other: Totals) -> Totals:
        """The totals of two processes."""
        both = Totals()
        for name in vars(both):
            setattr(both, name, getattr(self, name) + getattr(other, name))
        return both

    def summary(self, counters: Counters, failures: list[Failure], config: Any, peak_memory: int | None) -> RunSummary:
        """The run's numbers.

        Phases are means over the answers that went through them, not over those that reused a prefix. The first
        prefill of a process is a warm-up and left out of the times where there are others.
        """
        paid = self._paid or self._warm_up
        phases = {f"{phase}_s": _mean(times[phase] for times in paid if phase in times) for phase in PHASES}
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
            layer_tokens_mean=_mean(self._layer_tokens),
            kv_share_mean=None if all(share == 1.0 for share in self._kv_shares) else _mean(self._kv_shares),
            kept_share_mean=_mean(self._shares),
            kept_share_min=min(self._shares, default=None),
            kept_share_max=max(self._shares, default=None),
            ttft_s=_mean(self._ttft[1:] if len(self._ttft) > 1 else self._ttft),
            ttft_first_s=_mean(times["ttft"] for times in paid if "ttft" in times),
            ttft_end_to_end_s=_mean(times["ttft_end_to_end"] for times in paid if "ttft_end_to_end" in times),
            **phases,
            decode_s_per_token=self._decode_seconds / self._decode_tokens if self._decode_tokens else None,
            peak_memory_bytes=peak_memory,
        )


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return sum(values) / len(values) if values else None
