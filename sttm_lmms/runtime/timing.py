"""Clocks that are honest about asynchronous devices."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn


def synchronizer(model: nn.Module) -> Callable[[], None]:
    """A function that waits until ``model``'s devices have finished their work (nothing to wait for on a CPU).

    Only devices that hold parameters are asked: asking another one would open a context on it, in every process.
    """
    devices = _cuda_devices(model)
    if devices:
        return partial(_synchronize_cuda, devices)
    if any(parameter.device.type == "mps" for parameter in model.parameters()):
        return torch.mps.synchronize
    return _nothing


def clock(model: nn.Module, enabled: bool = True) -> Callable[[], float]:
    """Seconds since some start; waits for the device first if ``enabled``."""
    synchronize = synchronizer(model) if enabled else _nothing

    def now() -> float:
        synchronize()
        return time.perf_counter()

    return now


class FirstForward:
    """Context that notes when the first forward pass of ``model`` inside it has ended: the time to first token."""

    def __init__(self, model: nn.Module, now: Callable[[], float]) -> None:
        self._model, self._now = model, now
        self.ended: float | None = None

    def __enter__(self) -> FirstForward:
        self._handle = self._model.register_forward_hook(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _note(self, *_: Any) -> None:
        if self.ended is None:
            self.ended = self._now()


class ForwardSeconds:
    """Context that adds up the time spent in forward passes of ``module``."""

    def __init__(self, module: nn.Module, now: Callable[[], float]) -> None:
        self._module, self._now = module, now
        self._began = 0.0
        self.seconds = 0.0

    def __enter__(self) -> ForwardSeconds:
        self._handles = [
            self._module.register_forward_pre_hook(self._begin),
            self._module.register_forward_hook(self._end),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _begin(self, *_: Any) -> None:
        self._began = self._now()

    def _end(self, *_: Any) -> None:
        self.seconds += self._now() - self._began


def peak_memory(model: nn.Module) -> int | None:
    """Most bytes allocated since the last reset, summed over the CUDA devices that hold parameters; None without."""
    devices = _cuda_devices(model)
    return sum(torch.cuda.max_memory_allocated(device) for device in devices) if devices else None


def _cuda_devices(model: nn.Module) -> list[torch.device]:
    return sorted({p.device for p in model.parameters() if p.device.type == "cuda"}, key=lambda device: device.index)


def _synchronize_cuda(devices: Sequence[torch.device]) -> None:
    for device in devices:
        torch.cuda.synchronize(device)


def _nothing() -> None:
    return None
