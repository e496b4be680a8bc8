"""What a piece of work asks of the device, counted on any machine: operations, and those that make
the host wait."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HOST_READS = {
    *("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select"),
    *("_unique", "_unique2", "unique_consecutive", "unique_dim", "bincount", "repeat_interleave"),
}
"""Operations whose result, or its size, the host has to wait for."""


class Dispatched(TorchDispatchMode):
    """Context that counts what is dispatched inside of it.

    Attributes:
        operations: how often each operation was called; views, which launch nothing, are left out.
        host_reads: operations that make the host wait: values and sizes read, masks as indices,
            copies between devices.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.host_reads: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        if func.namespace == "prim" or func.is_view:
            return out
        given, made = _tensors((args, kwargs)), _tensors(out)
        self.operations[name] += 1
        waits = name in HOST_READS and not (name == "repeat_interleave" and isinstance(args[1], int))
        waits |= name in ("index", "index_put", "index_put_") and any(t.dtype == torch.bool for t in given[1:])
        waits |= name in ("_to_copy", "copy_") and len({t.device for t in (*given, *made)}) > 1
        if waits:
            self.host_reads[name] += 1
        return out


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
