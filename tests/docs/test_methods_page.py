"""docs/methods.md against the registry: every method, every setting."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from sttm_lmms.methods import BUILT_IN, get_method

PAGE = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
EVERYWHERE = {"start_layer", "decode_positions", "budget"}


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_page_has_the_method_with_all_its_settings(name: str) -> None:
    (row,) = [
        line
        for line in PAGE.split("## What a budget")[0].splitlines()
        if line.startswith("|") and f"`{name}`" in line.split("|")[1]
    ]
    names = {field.name for field in fields(get_method(name))}
    inherited = {field.name for field in fields(get_method("dycoke_stage1"))} if name == "dycoke" else set()
    for setting in names - inherited - EVERYWHERE:
        assert f"`{setting}`" in row, setting
    assert "budget" in row or name == "dycoke"
