"""Counting the bytes that tensors hold, on any device: what ``torch.cuda.max_memory_allocated``
says of a GPU."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Context that follows the storages made inside of it.

    Attributes:
        now: bytes of those that still exist.
        peak: most of them at a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {tensor.untyped_storage()._cdata for tensor in _with_storage((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for tensor in _with_storage(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in given and storage._cdata not in self._known:
                self._follow(storage)
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _with_storage(values: Any) -> list[torch.Tensor]:
    """The tensors among ``values`` that own memory: a sparse one is made of dense ones that were
    seen before."""
    return [t for t in tree_leaves(values) if isinstance(t, torch.Tensor) and t.layout is torch.strided]
