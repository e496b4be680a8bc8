"""Device and precision of a process, on machines that this one is not."""

from __future__ import annotations

import pytest
import torch
from loguru import logger

from sttm_lmms.model_wrappers.arguments import parse_arguments
from sttm_lmms.model_wrappers.placement import place


@pytest.fixture
def lines():
    found: list[str] = []
    sink = logger.add(found.append, format="{message}")
    yield found
    logger.remove(sink)


def placed(**given):
    return place(parse_arguments({"pretrained": "some/model", "method": "none", **given}))


@pytest.mark.parametrize(
    ("native", "dtype", "expected"),
    [
        (True, "auto", torch.bfloat16),
        (False, "auto", torch.float16),
        (False, "bfloat16", torch.bfloat16),
        (True, "float32", torch.float32),
    ],
)
def test_bfloat16_only_where_it_is_not_emulated(monkeypatch, lines, native, dtype, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert placed(dtype=dtype).dtype == expected
    said = "".join(lines)
    assert ("cuda:0 cannot compute in bfloat16: float16 is used" in said) == (not native and dtype == "auto")
