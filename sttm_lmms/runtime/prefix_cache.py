"""A bounded store of prefixes: the most recent ones on their devices, older ones in host memory if that is allowed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

import torch

from sttm_lmms.decoder import cached_layers, keys_values
from sttm_lmms.runtime.prefix import Prefix


class PrefixCache:
    """Least-recently-used prefixes.

    Args:
        keep: prefixes kept where they were computed (the current video's is one of them).
        host_bytes: memory for older ones on the host; 0 drops them.
    """

    def __init__(self, keep: int = 1, host_bytes: int = 0) -> None:
        self.keep, self.host_bytes = max(1, keep), host_bytes
        self._recent: OrderedDict[Hashable, Prefix] = OrderedDict()
        self._host: OrderedDict[Hashable, tuple[Prefix, list[torch.device]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._recent) + len(self._host)

    def get(self, key: Hashable) -> Prefix | None:
        """The prefix of ``key``, brought back to its devices if it was on the host; None if it is gone."""
        if key in self._host:
            prefix, devices = self._host.pop(key)
            _move(prefix, devices)
            self.put(key, prefix)
        if key in self._recent:
            self._recent.move_to_end(key)
        return self._recent.get(key)

    def make_room(self) -> None:
        """Let go of what the next :meth:`put` would push out, before its memory is needed."""
        while len(self._recent) >= self.keep:
            key, prefix = self._recent.popitem(last=False)
            if self.host_bytes:
                devices = [layer.device for layer in cached_layers(prefix.cache)]
                _move(prefix, [torch.device("cpu")] * len(devices))
                self._host[key] = (prefix, devices)
        while self._host and sum(prefix.nbytes for prefix, _ in self._host.values()) > self.host_bytes:
            self._host.popitem(last=False)

    def put(self, key: Hashable, prefix: Prefix) -> None:
        """Keep ``prefix`` as the most recent one."""
        self.make_room()
        self._recent[key] = prefix


def _move(prefix: Prefix, devices: list[torch.device]) -> None:
    for layer, device in zip(cached_layers(prefix.cache), devices, strict=True):
        layer.keys, layer.values = (tensor.to(device) for tensor in keys_values(layer))
        layer.device = device
