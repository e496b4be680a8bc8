"""Results that are computed as lmms-eval takes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, overload

T = TypeVar("T")


class Results(Sequence[T]):
    """A sequence of known length whose items are computed one after the other, when they are first asked for.

    lmms-eval's response cache stores each item before it takes the next one. With a list it would get all answers at
    the end of the run, and a run that is killed would lose everything.
    """

    def __init__(self, length: int, items: Iterator[T]) -> None:
        self._length, self._items = length, items
        self._known: list[T] = []

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: Any) -> Any:
        last = max(range(self._length)[index], default=-1) if isinstance(index, slice) else range(self._length)[index]
        while len(self._known) <= last:
            self._known.append(next(self._items))
        if self._known and len(self._known) == self._length:
            next(self._items, None)  # lets the iterator finish: it has a clock and a progress bar to stop
        return self._known[index]
