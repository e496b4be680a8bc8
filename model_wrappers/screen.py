"""What stands last on the screen after a run that failed.

lmms-eval catches every exception, prints its traceback and a line of its log, and ends with status 0. Its log line is
written while the exception is at hand, so a sink of the same log can add one sentence that says what to do.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

from loguru import logger

from sttm_lmms.explain import sentence

_collected: ContextVar[list[str] | None] = ContextVar("sentences about failed runs", default=None)


@cache
def install() -> int:
    """Add the sink, once for a process; lmms-eval resets its log before it makes the model."""
    return logger.add(_last_word, level="ERROR", format="{message}", filter="lmms_eval.__main__", catch=True)


def say(error: BaseException) -> None:
    """Print one sentence about ``error``, or hand it to :func:`collected`."""
    collected = _collected.get()
    if collected is not None:
        collected.append(sentence(error))
        return
    sys.stdout.flush()
    print(f"error: {sentence(error)}", file=sys.stderr, flush=True)


@contextmanager
def collected() -> Iterator[list[str]]:
    """Sentences about runs that fail inside, instead of printing them: for a caller that has the last word itself."""
    sentences: list[str] = []
    token = _collected.set(sentences)
    try:
        yield sentences
    finally:
        _collected.reset(token)


def _last_word(message: Any) -> None:
    error = sys.exc_info()[1]
    if error is not None:
        say(error)
