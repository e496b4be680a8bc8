"""The recorded Qwen2-VL cases of ToMe, DyCoke stage 1, FastV and FrameFusion, on hidden states
recorded with them."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sttm_lmms.methods import get_method
from sttm_lmms.types import Tokens

FOLDER = Path(__file__).parents[1] / "golden" / "qwen2_vl"
CASES: dict[str, dict[str, Any]] = json.loads((FOLDER / "cases.json").read_text())["cases"]
GRIDS = {"even": (10, 6, 10), "odd": (7, 5, 7)}
START = 8


@lru_cache
def tensors() -> dict[str, torch.Tensor]:
    return load_file(FOLDER / "cases.safetensors")


def of_method(*methods: str) -> list[str]:
    return [name for name, case in CASES.items() if case["method"] in methods]


def tokens_of(case: dict[str, Any], field: str) -> Tokens:
    grid = GRIDS[case["grid"]]
    features = tensors()[f"case/{case['grid']}_baseline/{field}"]
    start = 0 if field == "video_embeds" else START
    return Tokens.of_grid(features[start : start + grid[0] * grid[1] * grid[2]].view(*grid, -1))


@pytest.mark.parametrize("name", of_method("tome", "dycoke-stage1"))
def test_merging(name: str) -> None:
    case = CASES[name]
    settings = {key: case[key] for key in ("prune_ratio", "start_layer", "ver") if key in case}
    method = get_method(case["method"].replace("-", "_")).published(**settings)
    kept = method.reduce(tokens_of(case, f"hidden_layer{case['start_layer']}"), case["start_layer"], None, {})
    assert kept is not None
    assert torch.equal(kept.index, tensors()[f"case/{name}/token_index"].long())
    if (merged := tensors().get(f"case/{name}/merged")) is not None:
        torch.testing.assert_close(kept.features, merged, atol=1e-4, rtol=0)
    torch.testing.assert_close(kept.features.norm(dim=1), tensors()[f"case/{name}/merged_norm"], atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", of_method("fastv"))
def test_fastv(name: str) -> None:
    case = CASES[name]
    method = get_method("fastv").published(fastv_k=case["fastv_k"], fastv_r=case["fastv_r"])

    class Probe:
        layers = 4

        def attention(self, queries: tuple[int, ...]) -> torch.Tensor:
            assert tuple(queries) == (-1,)
            return tensors()[f"case/{name}/attention"][None]

    kept = method.reduce(tokens_of(case, "hidden_layer2"), 2, Probe(), {})
    assert kept is not None
    recorded = tensors()[f"case/{name}/kept_index"].long()
    video = recorded[(recorded >= START) & (recorded < START + case["visual_before"])]
    assert torch.equal(kept.index + START, video)


@pytest.mark.parametrize("name", of_method("framefusion"))
def test_first_call_of_framefusion(name: str) -> None:
    case = CASES[name]
    names = ("cost", "similarity_lower_bound", "ratio_lower_bound")
    method = get_method("framefusion").published(**{key: case[key] for key in names})
    tokens = tokens_of(case, "video_embeds")
    kept = method.reduce(tokens, 0, None, {})
    index = torch.arange(len(tokens)) if kept is None else kept.index
    recorded = tensors()[f"case/{name}/kept_index_before_attn0"].long()
    assert torch.equal(index + START, recorded[(recorded >= START) & (recorded < START + len(tokens))])
