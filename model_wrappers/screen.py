"""Print one actionable line after a failed run.

lmms-eval catches every exception, prints its traceback and a line of its log, and ends with status
0. Its log line is written while the exception is at hand, so whoever sees the log can add one
sentence that says what to do.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

from loguru import logger

from sttm_lmms.explain import format_error

_HARNESS = "lmms_eval.__main__"
_captured: ContextVar[list[str] | None] = ContextVar("sentences about failed runs", default=None)


@cache
def install() -> int:
    """Print the sentence at the end of a run under plain lmms-eval, which resets its log before it
    makes the model."""
    return logger.add(lambda message: _print_current(), level="ERROR", format="{message}", filter=_HARNESS, catch=True)


def print_error(error: BaseException) -> None:
    """Print one sentence about ``error``, or hand it to :func:`capture_errors`."""
    captured = _captured.get()
    if captured is not None:
        captured.append(format_error(error))
        return
    sys.stdout.flush()
    print(f"error: {format_error(error)}", file=sys.stderr, flush=True)


@contextmanager
def capture_errors() -> Iterator[list[str]]:
    """Sentences about all that fails inside, from lmms-eval's first line on, for a caller that has
    the last word."""
    captured: list[str] = []
    token = _captured.set(captured)
    # A patcher sees every record; a sink would be removed by lmms-eval when it resets its log.
    logger.configure(patcher=_capture)
    try:
        yield captured
    finally:
        logger.configure(patcher=lambda record: None)
        _captured.reset(token)


def _capture(record: Any) -> None:
    captured = _captured.get()
    if captured is not None and record["name"] == _HARNESS and record["level"].name == "ERROR":
        error = sys.exc_info()[1]
        captured.append(record["message"] if error is None else format_error(error))


def _print_current() -> None:
    error = sys.exc_info()[1]
    if error is not None and _captured.get() is None:  # else the patcher has it
        print_error(error)
