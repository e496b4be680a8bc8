"""Timing that accounts for asynchronous CUDA execution without waiting for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

Mark = Any
"""A point in time on a :class:`Stopwatch`: seconds, or an event in a CUDA stream."""


class Stopwatch:
    """Points in time in the order of the model's work.

    On one CUDA device a mark is an event in its stream, so that nothing waits until somebody asks
    for seconds. Models over several devices wait for all of them at each mark.

    Args:
        model: whose devices count.
        enabled: without it marks are host times, which on a device say when work was handed over,
            not when it ended.
    """

    def __init__(self, model: nn.Module, enabled: bool = True) -> None:
        devices = devices_of(model) if enabled else []
        self._stream = devices[0] if len(devices) == 1 and devices[0].type == "cuda" else None
        self._wait = synchronizer(model) if enabled and self._stream is None else _nothing

    def mark(self) -> Mark:
        """Now, in the order of the device's work."""
        if self._stream is None:
            self._wait()
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._stream))
        return event

    def seconds(self, began: Mark, ended: Mark) -> float:
        """Seconds between two marks; waits for the second one."""
        if self._stream is None:
            return float(ended - began)
        ended.synchronize()
        return float(began.elapsed_time(ended)) / 1000


class Phases:
    """Where the time of one answer went. Seconds are asked for at the end, so that nothing waits
    for the device."""

    def __init__(self, stopwatch: Stopwatch) -> None:
        self._stopwatch = stopwatch
        self._spans: list[tuple[str, int, Mark, Mark]] = []
        self._seconds: dict[str, float] = {}

    def add(self, phase: str, began: Mark, ended: Mark, *, within: str | None = None) -> None:
        """Count the time between two marks as ``phase``, and no longer as the phase ``within``
        which it lies."""
        self._spans.append((phase, 1, began, ended))
        if within is not None:
            self._spans.append((within, -1, began, ended))

    def include(self, other: Phases | None) -> None:
        """Count the phases of a part of this."""
        self._spans += other._spans if other is not None else []

    def add_seconds(self, seconds: Mapping[str, float]) -> None:
        """Count seconds by phase."""
        for phase, spent in seconds.items():
            self._seconds[phase] = self._seconds.get(phase, 0.0) + spent

    def seconds(self) -> dict[str, float]:
        """Seconds by phase; waits for the device."""
        found = dict(self._seconds)
        for phase, sign, began, ended in self._spans:
            found[phase] = found.get(phase, 0.0) + sign * self._stopwatch.seconds(began, ended)
        return found


def devices_of(model: nn.Module) -> list[torch.device]:
    """The devices that hold parameters of ``model``, without those of offloaded ones."""
    return sorted({p.device for p in model.parameters() if p.device.type != "meta"}, key=str)


def synchronizer(model: nn.Module) -> Callable[[], None]:
    """A function that waits until ``model``'s devices have finished their work (nothing to wait for
    on a CPU).

    Only devices that hold parameters are asked: asking another one would open a context on it, in
        every process.
    """
    devices = _cuda_devices(model)
    if devices:
        return partial(_synchronize_cuda, devices)
    if any(parameter.device.type == "mps" for parameter in model.parameters()):
        return torch.mps.synchronize
    return _nothing


class FirstForward:
    """Context that notes when the first forward pass of ``model`` inside it has ended: the time to
    first token."""

    def __init__(self, model: nn.Module, mark: Callable[[], Mark]) -> None:
        self._model, self._mark = model, mark
        self.ended: Mark | None = None

    def __enter__(self) -> FirstForward:
        self._handle = self._model.register_forward_hook(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _note(self, *_: Any) -> None:
        if self.ended is None:
            self.ended = self._mark()


class ForwardMarks:
    """Context that notes the beginning and the end of each forward pass of ``module`` in
    ``passes``."""

    def __init__(self, module: nn.Module, mark: Callable[[], Mark]) -> None:
        self._module, self._mark = module, mark
        self._began: Mark = None
        self.passes: list[tuple[Mark, Mark]] = []

    def __enter__(self) -> ForwardMarks:
        self._handles = [
            self._module.register_forward_pre_hook(self._begin),
            self._module.register_forward_hook(self._end),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _begin(self, *_: Any) -> None:
        self._began = self._mark()

    def _end(self, *_: Any) -> None:
        self.passes.append((self._began, self._mark()))


def peak_memory(model: nn.Module) -> int | None:
    """Most bytes allocated since the last reset, summed over the CUDA devices that hold parameters;
    None without."""
    devices = _cuda_devices(model)
    return sum(torch.cuda.max_memory_allocated(device) for device in devices) if devices else None


def _cuda_devices(model: nn.Module) -> list[torch.device]:
    return sorted({p.device for p in model.parameters() if p.device.type == "cuda"}, key=lambda device: device.index)


def _synchronize_cuda(devices: Sequence[torch.device]) -> None:
    for device in devices:
        torch.cuda.synchronize(device)


def _nothing() -> None:
    return None
