"""The end of a run: what all processes did, put into lmms-eval's result file, and the check that it
was something."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from lmms_eval.models.model_utils.gen_metrics import log_metrics
from loguru import logger

from sttm_lmms.errors import NothingAnsweredError
from sttm_lmms.model_wrappers import sharding
from sttm_lmms.provenance import RunSummary
from sttm_lmms.runtime import Counters, Engine, Failure, Reply
from sttm_lmms.runtime.summary import check_answers_reduced, summarise
from sttm_lmms.runtime.timing import peak_memory

_FAILURES_LISTED = 20


@dataclass(frozen=True)
class Share:
    """What one process did. ``seconds`` it spent answering; ``peak_memory`` in bytes, None without
    CUDA."""

    replies: Sequence[Reply]
    counters: Counters
    failures: Sequence[Failure]
    output_tokens: int
    seconds: float
    peak_memory: int | None


def finish_run(
    engine: Engine, *, reduction: str | None, output_tokens: int, seconds: float, rank: int
) -> RunSummary | None:
    """Log the totals of all processes and list the failures. Called by every process, at the same
    point.

    Args:
        reduction: the one that the user asked for, in words; None for the baseline.

    Returns:
        The totals; None if every answer came out of lmms-eval's own response cache.

    Raises:
        NothingAnsweredError: on every process, if no question that shows something was answered by
            any of them.
        NothingReducedError: on every process, if a reduction was asked for and none of them reduced
            anything. lmms-eval then writes no result file.
    """
    memory = peak_memory(engine.model)
    mine = Share(engine.replies, engine.counters, list(engine.failures), output_tokens, seconds, memory)
    shares = sharding.gather(mine)
    counters = Counters(**{f.name: sum(getattr(share.counters, f.name) for share in shares) for f in fields(Counters)})
    failures = [failure for share in shares for failure in share.failures]
    replies = [reply for share in shares for reply in share.replies]
    memories = [share.peak_memory for share in shares if share.peak_memory is not None]
    summary = summarise(
        [share.replies for share in shares], counters, failures, engine.config, max(memories, default=None)
    )
    if failures and rank == 0:
        _list_failures(failures)
    if failures and summary.tokens_before is None:
        count = sum(failure.questions for failure in failures)
        raise NothingAnsweredError(f"none of the {count} questions could be answered: {failures[0].error}")
    check_answers_reduced(replies, reduction)
    if all(reply.error is not None for reply in replies):
        return None
    tokens, longest = sum(share.output_tokens for share in shares), max(share.seconds for share in shares)
    rate = summary.questions / longest if longest else None
    summary = replace(summary, reduction_asked=int(reduction is not None), questions_per_s=rate)
    log_metrics(longest, tokens, tokens / longest if longest else 0.0, summary.headline())
    return summary


def _list_failures(failures: Sequence[Failure]) -> None:
    lines = [f"  {failure.error} ({failure.questions} unanswered)" for failure in failures[:_FAILURES_LISTED]]
    if len(failures) > _FAILURES_LISTED:
        lines.append(f"  and {len(failures) - _FAILURES_LISTED} more")
    count = sum(failure.questions for failure in failures)
    logger.warning("{} questions have no answer because a source could not be read:\n{}", count, "\n".join(lines))
