"""A process that a launcher started does not outlive it."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from functools import cache
from threading import Thread

_SECONDS = 1.0


@cache
def end_with_launcher() -> None:
    """Under torchrun or accelerate: end this process, status 1, soon after the one that started it.
    Once is enough.

    A launcher stops its processes, unless it is killed itself. They would then go on, hold their
    GPUs, and write beside those of a rerun. A process that no such launcher started is left alone:
    it may outlive its shell (``nohup``).
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        Thread(target=_end_after, args=(os.getppid(),), name="end_with_launcher", daemon=True).start()


def _end_after(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_SECONDS)
    with suppress(OSError, ValueError):  # stderr may be closed
        print(f"the launcher (process {parent}) is gone: process {os.getpid()} ends", file=sys.stderr, flush=True)
    os._exit(1)
