"""What is kept for the next question: the most recently used values, and KV prefixes in host memory
behind them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

from sttm_lmms.runtime.prefix import Prefix

Value = TypeVar("Value")


class Recent(Generic[Value]):
    """The ``size`` most recently used values, at least one."""

    def __init__(self, size: int) -> None:
        self.size = max(1, size)
        self._values: OrderedDict[Hashable, Value] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._values

    def get(self, key: Hashable) -> Value | None:
        """The value of ``key``, now the most recently used; None if it is gone."""
        if key in self._values:
            self._values.move_to_end(key)
        return self._values.get(key)

    def make_room(self) -> None:
        """Let go of what the next :meth:`put` would push out, before its memory is needed."""
        while len(self._values) >= self.size:
            self._let_go(*self._values.popitem(last=False))

    def put(self, key: Hashable, value: Value) -> None:
        """Keep ``value`` as the most recently used one."""
        self.make_room()
        self._values[key] = value

    def _let_go(self, key: Hashable, value: Value) -> None:
        """What becomes of a value that is pushed out."""


class RecentPrefixes(Recent[Prefix]):
    """Prefixes on the devices where they were computed; those that are pushed out wait in host
    memory.

    Args:
        size: prefixes kept where they were computed (the current video's is one of them).
        host_bytes: memory for older ones on the host; 0 drops them.
    """

    def __init__(self, size: int, host_bytes: int = 0) -> None:
        super().__init__(size)
        self.host_bytes = host_bytes
        self._host: OrderedDict[Hashable, Prefix] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values) + len(self._host)

    def get(self, key: Hashable) -> Prefix | None:
        """As of :class:`Recent`; a prefix on the host is brought back to its devices."""
        if key in self._host:
            prefix = self._host.pop(key)
            self.make_room()
            for layer in prefix.cache.layers:
                layer.prefetch()
            self.put(key, prefix)
        return super().get(key)

    def _let_go(self, key: Hashable, value: Prefix) -> None:
        if not self.host_bytes:
            return
        for layer in value.cache.layers:
            layer.offload()
        self._host[key] = value
        while self._host and sum(prefix.nbytes for prefix in self._host.values()) > self.host_bytes:
            self._host.popitem(last=False)
