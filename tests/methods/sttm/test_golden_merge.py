"""The 188 recorded outputs of the published merger: boxes and counts equal, features to 1e-5."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sttm_lmms.methods.sttm import STTMConfig, merge_video_tokens

FOLDER = Path(__file__).parents[2] / "golden" / "merge"
CASES = json.loads((FOLDER / "visible.json").read_text())


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return load_file(FOLDER / "visible.safetensors")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_golden_case(case: dict, tensors: dict[str, torch.Tensor]) -> None:
    config = STTMConfig(
        spatial_threshold=case["spatial_threshold"],
        temporal_threshold=case["temporal_threshold"],
        root_level=case["root_level"],
        weighted_avg=case["weighted_avg"],
        per_head=case["head_dim"] is not None,
    )
    features = tensors[case["input"]].permute(0, 2, 3, 1)
    merged = merge_video_tokens(features, config, head_dim=case["head_dim"])

    recorded = {key: tensors[f"out/{case['name']}/{key}"] for key in ("features", "num_patches", "tyxyx")}
    assert len(merged) == case["tokens_out"]
    assert torch.equal(merged.boxes, recorded["tyxyx"].long())
    assert torch.equal(merged.counts, recorded["num_patches"].long())
    torch.testing.assert_close(merged.features, recorded["features"], atol=1e-5, rtol=0)


def test_all_cases_are_here() -> None:
    assert len(CASES) == 188
