"""A time limit for one video, so that no file stops a run."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from queue import Empty, Queue
from typing import Any, TypeVar

from sttm_lmms.errors import VideoError

Item = TypeVar("Item")

# Seconds that a loop which looks at the clock itself gets to say where it was.
_GRACE = 2.0


class Deadline:
    """The moment at which reading a video is given up.

    Args:
        seconds: from now on, as the user set it; 0 is no limit.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds if seconds else math.inf
        self._paused_at: float | None = None

    @property
    def left(self) -> float | None:
        """Seconds left, negative when it is over; None without a limit."""
        return self._end - (self._paused_at or time.monotonic()) if self.seconds else None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Work in here does not count, because it is not the file that takes the time."""
        self._paused_at = time.monotonic()
        try:
            yield
        finally:
            self._end += time.monotonic() - self._paused_at
            self._paused_at = None

    def error(self, path: str | Path) -> VideoError:
        """What to raise when it is over."""
        limit = f"video_timeout={self.seconds:g}"
        return VideoError(path, f"not read within {self.seconds:g} s", f"re-encode it, or raise {limit} (0 = no limit)")

    def check(self, path: str | Path) -> None:
        """Raise ``VideoError`` if it is over."""
        if self.left is not None and self.left < 0:
            raise self.error(path)

    def run(self, path: str | Path, call: Callable[[], Item]) -> Item:
        """What ``call`` returns or raises, or ``VideoError`` if it does not come back in time."""
        return next(self.iterate(path, (call() for _ in range(1))))

    def iterate(self, path: str | Path, items: Iterator[Item]) -> Iterator[Item]:
        """``items``, made in a thread; ``VideoError`` if one does not come in time.

        A thread cannot be killed: one that loops inside of a C library is left behind and keeps a
        core busy until the process ends. It does not keep the process from ending.
        """
        if self.left is None:
            yield from items
            return
        ready: Queue[Callable[[], Item]] = Queue(maxsize=1)
        stop = threading.Event()

        def work() -> None:
            try:
                for item in items:
                    ready.put(partial(_same, item))
                    if stop.is_set():
                        return
                ready.put(partial(_raised, StopIteration()))
            except BaseException as error:  # raised where the item is asked for
                ready.put(partial(_raised, error))

        threading.Thread(target=work, name="sttm-video", daemon=True).start()
        try:
            while True:
                try:
                    item = ready.get(timeout=max(self.left, 0) + _GRACE)()
                except Empty:
                    raise self.error(path) from None
                except StopIteration:
                    return
                yield item
        finally:
            stop.set()
            with suppress(Empty):
                ready.get_nowait()  # room for the item that the thread may be holding


def _same(item: Item) -> Item:
    return item


def _raised(error: BaseException) -> Any:
    raise error
