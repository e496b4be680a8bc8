"""What a GPU would be asked to do, counted without one: operations, bytes, memory, host reads.

Tensors are fake ones on a made-up CUDA device: all sizes and branches are real, nothing is
computed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sttm_lmms.methods.sttm.grid import grid_for

LOOK_UPS = {"index", "gather", "index_select", "_embedding_bag_forward_only"}
"""Operations that read as much of their first argument as they return (or of their indices)."""

HOST_READS = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_consecutive",
    "bincount",
    "equal",
    "is_nonzero",
}


class Work(TorchDispatchMode):
    """Counts what is dispatched and refuses what makes the host wait for the device.

    Attributes:
        operations: how often each operation was called, without views.
        views: how often a view was made, which launches nothing.
        moved: bytes that they read and write.
        peak: most bytes that were alive at once, of all tensors made inside.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.views = self.moved = self.peak = 0
        self._alive: dict[StorageWeakRef, int] = {}

    @property
    def total(self) -> int:
        return self.operations.total()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        if func.namespace == "prim":
            return out
        if func.is_view:
            self.views += 1
            return out
        assert name not in HOST_READS, f"{name} makes the host wait"
        results, given = _tensors(out), _tensors((args, kwargs))
        if name == "index":
            assert all(index.dtype == torch.int64 for index in given[1:]), "a mask as an index makes the host wait"
        self.operations[name] += 1
        written = sum(map(_bytes, results))
        self.moved += written + (2 * written if name in LOOK_UPS else sum(map(_bytes, given)))
        self._remember(results)
        return out

    def _remember(self, results: list[torch.Tensor]) -> None:
        self._alive = {ref: size for ref, size in self._alive.items() if not ref.expired()}
        for tensor in results:
            self._alive[StorageWeakRef(tensor.untyped_storage())] = tensor.untyped_storage().nbytes()
        self.peak = max(self.peak, sum(self._alive.values()))


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


@contextmanager
def made_up_gpu() -> Iterator[None]:
    """Inside, ``torch.empty(..., device="cuda")`` is a fake tensor."""
    grid_for.cache_clear()  # made-up tables must not stay for others
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        grid_for.cache_clear()
