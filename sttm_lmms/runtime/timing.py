"""Clocks that are honest about asynchronous devices."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def synchronizer(model: nn.Module) -> Callable[[], None]:
    """A function that waits until ``model``'s device has finished its work (nothing to wait for on a CPU)."""
    kinds = {parameter.device.type for parameter in model.parameters()}
    if "cuda" in kinds:
        return _synchronize_cuda
    if "mps" in kinds:
        return torch.mps.synchronize
    return lambda: None


def _synchronize_cuda() -> None:
    for index in range(torch.cuda.device_count()):
        torch.cuda.synchronize(index)
