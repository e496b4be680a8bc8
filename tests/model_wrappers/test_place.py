"""Device and precision of a process, on machines that this one is not."""

from __future__ import annotations

import pytest
import torch

from sttm_lmms.families.placement import place_model
from sttm_lmms.model_wrappers.arguments import parse_arguments
from sttm_lmms.model_wrappers.load import place


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
def test_bfloat16_only_where_it_is_not_emulated(monkeypatch, caplog, native, dtype, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert placed(dtype=dtype).dtype == expected
    assert ("cuda:0 cannot compute in bfloat16: float16 is used" in caplog.text) == (not native and dtype == "auto")


def test_an_unknown_dtype_is_a_sentence():
    with pytest.raises(ValueError, match=r"unknown dtype 'bf16'\. Did you mean 'bfloat16'\? Known: auto, bfloat16"):
        place_model(dtype="bf16")
