"""Vision tower, M-RoPE positions and baseline logits of Qwen2-VL against recordings of the
published code."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sttm_lmms.families import get_family
from sttm_lmms.families.qwen2_vl import mrope_positions, run_vision_tower

GOLDEN = Path(__file__).parents[1] / "golden" / "qwen2_vl"
META = json.loads((GOLDEN / "cases.json").read_text())


@pytest.fixture(scope="module")
def tensors():
    return load_file(GOLDEN / "cases.safetensors")


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request):
    return get_family("qwen2_vl").load_model(
        GOLDEN / "qwen2_vl_tiny", dtype=torch.float32, attn_implementation=request.param
    )


@pytest.mark.parametrize("grid", ["even", "odd"])
@torch.no_grad()
def test_baseline(model, tensors, grid):
    pixels = (tensors[f"input/{grid}/pixel_coef"].float() @ tensors["input/pixel_basis"].float()) / 1024
    assert hashlib.sha256(pixels.numpy().tobytes()).hexdigest() in json.dumps(META["inputs"][grid])
    ids = tensors[f"input/{grid}/input_ids"]
    thw = tensors[f"input/{grid}/video_grid_thw"]
    case = f"case/{grid}_baseline"

    visual = run_vision_tower(model, pixels, thw)
    torch.testing.assert_close(visual.flatten(0, 2), tensors[f"{case}/video_embeds"], atol=1e-5, rtol=0)

    start = int((ids[0] == model.config.video_token_id).nonzero()[0])
    positions = mrope_positions(ids.shape[1], [(start, tuple(visual.shape[:3]))])
    assert torch.equal(positions, tensors[f"{case}/position_ids"].long())

    embeds = model.get_input_embeddings()(ids).clone()
    embeds[0, start : start + visual.flatten(0, 2).shape[0]] = visual.flatten(0, 2)
    logits = model(inputs_embeds=embeds, position_ids=positions, logits_to_keep=1).logits[0, -1]
    torch.testing.assert_close(logits, tensors[f"{case}/logits"][0], atol=1e-4, rtol=0)
