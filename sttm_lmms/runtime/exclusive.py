"""What keeps forward passes apart that share one decoder: threads that take turns, and compiled
code put aside."""

from __future__ import annotations

import threading
from typing import Any

import torch


class Turns:
    """Lets one thread at a time run a forward pass. A thread that was interrupted keeps its turn
    until its next pass: torch calls no hooks after a KeyboardInterrupt."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder: threading.Thread | None = None

    def take(self) -> None:
        """Wait for the pass of another thread."""
        if not self.mine:
            self._lock.acquire()
            self._holder = threading.current_thread()

    @property
    def mine(self) -> bool:
        """True while it is this thread's turn."""
        return self._holder is threading.current_thread()

    def give_back(self) -> None:
        """Let the next thread in; nothing where it is not this thread's turn."""
        if self.mine:
            self._holder = None
            self._lock.release()


class _EagerMode:
    """Lets compiled functions run as they are written from the first :meth:`enter` to the last
    :meth:`leave`.

    Code that was compiled before does not see hooks that come later, whoever compiled it: the
    model, a module of it or a function around it. torch's stance holds for the whole process, and
    so does this count.
    """

    def __init__(self) -> None:
        self._lock, self._entered = threading.Lock(), 0
        self._stance: Any = None

    def enter(self) -> None:
        """Begin to ignore compiled code."""
        with self._lock:
            if self._entered == 0:
                self._stance = torch.compiler.set_stance("force_eager")
            self._entered += 1

    def leave(self) -> None:
        """Use compiled code again, unless others still ignore it."""
        with self._lock:
            self._entered -= 1
            if self._entered == 0:
                self._stance.__exit__(None, None, None)


EAGER_MODE = _EagerMode()
