"""The numbers of a run, from its answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sttm_lmms.provenance import RunSummary
from sttm_lmms.runtime.report import check_reduced
from sttm_lmms.runtime.requests import Answer, Counters, Failure, Reply
from sttm_lmms.runtime.timing import IN_FRONT

PHASES = (*IN_FRONT, "prefill_before", "merge", "prefill_after", "prefill")


def summarise(
    processes: Sequence[Sequence[Reply]],
    counters: Counters,
    failures: Sequence[Failure],
    config: Any = None,
    peak_memory: int | None = None,
) -> RunSummary:
    """The numbers of a run.

    Phases are means over the answers that went through them, not over those that reused a prefix.
    The first prefill of a process is a warm-up and left out of the times where there are others.

    Args:
        processes: the answers and scores that each process gave, in its order. Those without a
            video that could be read count as questions only.
        counters, failures: of all processes.
        config: the reduction that was asked for, None for the baseline.
        peak_memory: bytes, None without CUDA.
    """
    answered = [reply for replies in processes for reply in _answered(replies)]
    shown = [reply for reply in answered if reply.visual_tokens]
    shares = [reply.kept_tokens / reply.visual_tokens for reply in shown]
    timed = [
        [reply for reply in _answered(replies) if isinstance(reply, Answer) and reply.timing] for replies in processes
    ]
    all_times = _warm([[answer.timing for answer in own if "ttft" in answer.timing] for own in timed])
    # What an earlier answer paid for is not counted again.
    prefills = _warm([[_with_end_to_end(answer.timing) for answer in own if not answer.reused] for own in timed])
    decoded = [answer for own in timed for answer in own if answer.output_tokens > 1 and "decode" in answer.timing]
    steps = sum(answer.output_tokens - 1 for answer in decoded)
    return RunSummary(
        questions=counters.questions,
        failures=len(failures),
        videos_decoded=counters.videos_decoded,
        vision_passes=counters.vision_passes,
        prefills=counters.prefills,
        reduction_asked=int(config is not None),
        reduced_share=sum(reply.reduced for reply in answered) / max(1, len(answered)),
        requested_budget=getattr(config, "budget", None),
        tokens_before=_mean(reply.visual_tokens for reply in shown),
        tokens_after=_mean(reply.kept_tokens for reply in shown),
        layer_tokens_mean=_mean(reply.layer_tokens for reply in shown),
        kv_share_mean=_mean(reply.kv_share for reply in shown) if any(reply.kv_share < 1 for reply in shown) else None,
        kept_share_mean=_mean(shares),
        kept_share_min=min(shares, default=None),
        kept_share_max=max(shares, default=None),
        ttft_s=_mean_of("ttft", all_times),
        ttft_first_s=_mean_of("ttft", prefills),
        ttft_end_to_end_s=_mean_of("ttft_end_to_end", prefills),
        **{f"{phase}_s": _mean_of(phase, prefills) for phase in PHASES},
        decode_s_per_token=sum(answer.timing["decode"] for answer in decoded) / steps if steps else None,
        peak_memory_bytes=peak_memory,
    )


def check_answers_reduced(replies: Iterable[Reply], asked: str | None) -> None:
    """Raise :class:`NothingReducedError` if a reduction was ``asked`` for (in words, None for the
    baseline) and no answer had fewer tokens."""
    answered = _answered(replies)
    if asked is not None and answered:
        check_reduced(asked, sum(reply.reduced for reply in answered), f"{len(answered)} answers")


def _answered(replies: Iterable[Reply]) -> list[Reply]:
    return [reply for reply in replies if reply.error is None]


def _with_end_to_end(timing: Mapping[str, float]) -> dict[str, float]:
    seen = sum(timing.get(phase, 0.0) for phase in IN_FRONT)
    return {**timing, **({"ttft_end_to_end": seen + timing["ttft"]} if "ttft" in timing else {})}


def _warm(processes: Sequence[Sequence[Mapping[str, float]]]) -> list[Mapping[str, float]]:
    """All times but the first of each process; the first ones where there are no others."""
    return [timing for own in processes for timing in own[1:]] or [own[0] for own in processes if own]


def _mean_of(phase: str, times: Iterable[Mapping[str, float]]) -> float | None:
    return _mean(timing[phase] for timing in times if phase in timing)


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return sum(values) / len(values) if values else None
