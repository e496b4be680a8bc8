"""What lmms-eval prints at the end of a run, without the rows that only a program reads."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import fields
from typing import Any, TextIO

from sttm_lmms.provenance import METRIC_PREFIX, RunSummary

READ = (
    "questions",
    "failures",
    "tokens_before",
    "tokens_after",
    "layer_tokens_mean",
    "kept_share_mean",
    "ttft_first_s",
    "ttft_end_to_end_s",
    "decode_s_per_token",
    "peak_memory_bytes",
)
"""Numbers of :class:`RunSummary` that stay in the printed table. All of them are in the result file."""

_HIDDEN = {METRIC_PREFIX + f.name for f in fields(RunSummary)} - {METRIC_PREFIX + name for name in READ}
_ROW = re.compile(r"\|\s*(\w+)\s*\|")


@contextmanager
def shorter_tables() -> Iterator[None]:
    """Leave rows out of the Markdown tables that are printed inside."""
    with redirect_stdout(_Shortened(sys.stdout)):
        yield


def shorten(text: str) -> str:
    """``text`` without the table rows of numbers that nobody reads; a line tells how many went and where they are."""
    lines = text.splitlines(keepends=True)
    kept = [line for line in lines if not ((row := _ROW.match(line)) and row[1] in _HIDDEN)]
    if len(kept) == len(lines):
        return text
    return "".join(kept).rstrip("\n") + f"\n{len(lines) - len(kept)} more numbers are in the result file: throughput\n"


class _Shortened:
    """A text stream in front of another one."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(shorten(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
