"""A time limit for one video, so that no file stops a run."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sttm_lmms.errors import VideoError

Result = TypeVar("Result")

_GRACE = 2.0
"""Seconds that a loop which looks at the clock itself gets to say where it was."""


@dataclass(frozen=True)
class Deadline:
    """The moment at which reading a video is given up.

    Attributes:
        seconds: the limit as the user set it; 0 is none.
        end: when it is over, on the monotonic clock.
    """

    seconds: float
    end: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """``seconds`` from now; 0 is never."""
        return cls(seconds, time.monotonic() + seconds if seconds else math.inf)

    @property
    def left(self) -> float | None:
        """Seconds left, at least 0; None without a limit."""
        return max(0.0, self.end - time.monotonic()) if self.seconds else None

    def error(self, path: str | Path) -> VideoError:
        """What to raise when it is over."""
        limit = f"video_timeout={self.seconds:g}"
        return VideoError(path, f"not read within {self.seconds:g} s", f"re-encode it, or raise {limit} (0 = no limit)")

    def check(self, path: str | Path) -> None:
        """Raise ``VideoError`` if it is over."""
        if time.monotonic() > self.end:
            raise self.error(path)

    def run(self, path: str | Path, call: Callable[[], Result]) -> Result:
        """What ``call`` returns or raises, or ``VideoError`` if it does not come back in time.

        A thread cannot be killed: a call that loops inside of a C library is left behind and keeps one core busy
        until the process ends. It does not keep the process from ending.
        """
        left = self.left
        if left is None:
            return call()
        result: list[Result] = []
        raised: list[BaseException] = []

        def work() -> None:
            try:
                result.append(call())
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(target=work, name="sttm-video", daemon=True)
        thread.start()
        thread.join(left + _GRACE)
        if raised:
            raise raised[0]
        if not result:
            raise self.error(path)
        return result[0]
