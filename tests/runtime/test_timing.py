"""Which devices a clock waits for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sttm_lmms.runtime.timing import Stopwatch, devices_of, peak_memory, wait_for


def model_on(*devices: str) -> SimpleNamespace:
    """Something with parameters on devices that this machine need not have."""
    return SimpleNamespace(parameters=lambda: iter([SimpleNamespace(device=torch.device(name)) for name in devices]))


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """Devices that were waited for, on a machine that says it has eight."""
    devices: list[str] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: devices.append(str(device)))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device=None: 10 + torch.device(device).index)
    return devices


@pytest.mark.parametrize(
    ("devices", "waited"),
    [
        (("cuda:3", "cuda:3"), ["cuda:3"]),
        (("cuda:1", "cuda:0", "cuda:1", "cpu", "meta"), ["cuda:0", "cuda:1"]),
        (("cpu", "meta"), []),
    ],
)
def test_only_devices_with_parameters_are_waited_for(asked, devices, waited):
    wait_for(devices_of(model_on(*devices)))
    assert asked == waited


def test_several_devices_are_waited_for_at_each_mark(asked):
    Stopwatch(model_on("cuda:0", "cuda:1")).mark()
    assert asked == ["cuda:0", "cuda:1"]
    Stopwatch(model_on("cuda:0", "cuda:1"), enabled=False).mark()
    assert asked == ["cuda:0", "cuda:1"]


def test_memory_is_that_of_the_same_devices(asked):
    assert peak_memory(model_on("cuda:3", "cuda:5", "cuda:3")) == 13 + 15
    assert peak_memory(model_on("cpu")) is None
