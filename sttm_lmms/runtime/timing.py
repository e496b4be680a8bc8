"""Timing that accounts for asynchronous CUDA execution without waiting for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

Mark = Any
"""A point in time on a :class:`Stopwatch`: seconds, or an event in a CUDA stream."""


IN_FRONT = ("video_decode", "preprocess", "vision")
"""Phases in front of the decoder."""


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
        self._devices = devices_of(model) if enabled else []
        one_cuda = len(self._devices) == 1 and self._devices[0].type == "cuda"
        self._stream = self._devices[0] if one_cuda else None

    def mark(self) -> Mark:
        """Now, in the order of the device's work."""
        if self._stream is None:
            wait_for(self._devices)
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

    def seconds_of_answer(self) -> dict[str, float]:
        """Seconds by phase, with ``ttft`` (the decoder's part, as in the paper) and
        ``end_to_end``."""
        found = self.seconds()
        whole = sum(found[phase] for phase in (*IN_FRONT, "prefill", "decode"))
        return {**found, "ttft": found["prefill"], "end_to_end": whole}


def devices_of(model: nn.Module) -> list[torch.device]:
    """The devices that hold parameters of ``model``, without those of offloaded ones."""
    return sorted({p.device for p in model.parameters() if p.device.type != "meta"}, key=str)


def wait_for(devices: Sequence[torch.device]) -> None:
    """Wait until these devices have finished their work; nothing to wait for on a CPU."""
    # No other devices: asking one opens a context on it, in every process.
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()


@contextmanager
def pass_marks(module: nn.Module, mark: Callable[[], Mark]) -> Iterator[list[tuple[Mark, Mark]]]:
    """A list that gets the beginning and the end of each forward pass of ``module``."""
    passes: list[tuple[Mark, Mark]] = []
    began: list[Mark] = []

    def begin(*_: object) -> None:
        began.append(mark())

    def end(*_: object) -> None:
        passes.append((began.pop(), mark()))

    handles = [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def first_pass_end(model: nn.Module, mark: Callable[[], Mark]) -> Iterator[list[Mark]]:
    """A list that gets the end of the first forward pass of ``model``: the time to first token."""
    ended: list[Mark] = []

    def note(*_: object) -> None:
        if not ended:  # a mark at each decode step would cost time
            ended.append(mark())

    handle = model.register_forward_hook(note)
    try:
        yield ended
    finally:
        handle.remove()


def peak_memory(model: nn.Module) -> int | None:
    """Most bytes allocated since the last reset, summed over the CUDA devices that hold parameters;
    None without."""
    devices = [device for device in devices_of(model) if device.type == "cuda"]
    return sum(torch.cuda.max_memory_allocated(device) for device in devices) if devices else None
