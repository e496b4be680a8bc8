"""Work that is done ahead in threads: the next videos are decoded while the model is busy with this
one.

Threads are enough, and leave no process behind when a run is killed: FFmpeg, decord and torch let
go of the interpreter lock while they work.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from sttm_lmms.config import check_integer

Item = TypeVar("Item")
Result = TypeVar("Result")
Job = tuple[Hashable, Callable[[], Result]]
"""A name for the result, and the call that gives it."""


class Prefetcher(Generic[Result]):
    """Calls the jobs of the next items in threads.

    Args:
        depth: items to be ahead, 0 for none. No more than this many results wait at any time, those
            that are being computed included, which bounds memory.
        workers: threads; by default one for each item ahead, and no more than there are CPU cores.
    """

    def __init__(self, depth: int, workers: int | None = None) -> None:
        check_integer("prefetch", depth, 0)
        if workers is not None:
            check_integer("prefetch_workers", workers, 1)
        self.depth = depth
        self.workers = workers or max(1, min(depth, os.cpu_count() or 1))
        self._results: dict[Hashable, Future[Result]] = {}

    def ahead(self, items: Iterable[Item], job: Callable[[Item], Job[Result] | None]) -> Iterator[Item]:
        """``items`` as they are, in their order, while the jobs of the next ones run.

        Args:
            job: what to do for an item; None for nothing. Items with the same name share one
                result.
        """
        items = list(items)
        if not self.depth or len(items) < 2:
            yield from items
            return
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="sttm-prefetch")
        try:
            for position, item in enumerate(items):
                current = job(item)
                for later in items[position + 1 : position + 1 + self.depth]:
                    found = job(later)
                    if found is not None and found[0] not in self._results and (not current or found[0] != current[0]):
                        self._results[found[0]] = pool.submit(found[1])
                yield item
                if current is not None:
                    self._results.pop(current[0], None)  # nobody took it
        finally:
            self._results.clear()
            pool.shutdown(wait=False, cancel_futures=True)

    def take(self, name: Hashable) -> Callable[[], Result] | None:
        """The result of a job, as a call that waits for it and raises what the job raised; None if
        none was begun."""
        future = self._results.pop(name, None)
        return None if future is None else future.result
