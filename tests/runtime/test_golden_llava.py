"""LLaVA-Video and LLaVA-OneVision checkpoints of the original layout under `reduce_tokens`, case by
case."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sttm_lmms import STTMConfig, reduce_tokens
from sttm_lmms.families import get_family
from sttm_lmms.families.llava import newline_embedding, newline_layout, pool, project, run_vision_tower
from sttm_lmms.types import VideoSpan

GOLDEN = Path(__file__).parents[1] / "golden" / "llava"
META = json.loads((GOLDEN / "cases.json").read_text())
# Recorded oddities of the published code that ours is not meant to repeat.
ODDITIES = {
    "video_sttm_grid_newline_l1_r1",
    "video_sttm_l1_r1_k30_slow",
    "video_sttm_temporal_only_l1_rm1",
}
CASES = {name: case for name, case in META["cases"].items() if name not in ODDITIES}
STTM = [name for name in CASES if "_sttm_" in name]
BASE = [name for name in CASES if "_base_" in name]
SYSTEM, INSTRUCTION, FRAMES, SIDE = 7, 11, 12, 7


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "cases.safetensors")


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def models(request):
    return {
        name: get_family(family)
        .load_model(GOLDEN / folder, dtype=torch.float32, device_map=None, attn_implementation=request.param)
        .eval()
        for name, family, folder in (
            ("video", "llava_video", "llava_video_tiny"),
            ("onevision", "llava_onevision", "llava_onevision_tiny"),
        )
    }


@torch.no_grad()
def prompt(models, tensors, case: dict):
    """The model, ``inputs_embeds [1, L, C]`` and the video's span."""
    name = case["settings"]["ckpt"]
    model = models[name]
    ids = tensors[f"inputs/{name}_input_ids"].flatten()
    ids = ids[ids >= 0]
    text = model.get_input_embeddings()(ids[None])
    pooled = pool(model, project(model, run_vision_tower(model, tensors["inputs/pixel_values"])))
    visual = newline_layout(pooled, newline_embedding(model), case["settings"]["newline"])
    embeds = torch.cat([text[:, :SYSTEM], visual[None], text[:, SYSTEM:]], dim=1)
    return model, embeds, VideoSpan(SYSTEM, (FRAMES, SIDE, SIDE))


def generate(model, embeds):
    return model.generate(
        inputs_embeds=embeds,
        attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
        max_new_tokens=6,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        eos_token_id=None,
        pad_token_id=0,
    )


def check(out, tensors, case, name):
    lengths = [layer.get_seq_length() for layer in out.past_key_values.layers]
    assert lengths == case["kv_len_per_layer_after_generate"]
    torch.testing.assert_close(torch.cat(out.logits), tensors[f"{name}/generate_logits"], atol=1e-4, rtol=0)
    assert out.sequences[0].tolist() == case["greedy_tokens"]


@pytest.mark.parametrize("name", BASE)
def test_baseline(models, tensors, name):
    case = CASES[name]
    model, embeds, _ = prompt(models, tensors, case)
    assert embeds.shape[1] == case["seq_len_before"]
    check(generate(model, embeds), tensors, case, name)


@pytest.mark.parametrize("name", STTM)
def test_case(models, tensors, name):
    case = CASES[name]
    model, embeds, span = prompt(models, tensors, case)
    sttm = case["settings"]["sttm"]
    config = STTMConfig(
        spatial_threshold=sttm["sa_tree_thresh"],
        temporal_threshold=sttm["sa_tree_temporal_thresh"],
        root_level=sttm["sa_tree_root_level"],
        start_layer=sttm["sa_start_layer_idx"],
        weighted_avg=sttm.get("sa_tree_weighted_avg", False),
        per_head=sttm.get("sim_per_head", False),
        decode_positions="reference",
    )
    with reduce_tokens(model, config, spans=[span]) as report:
        out = generate(model, embeds)
    (event,) = report.events
    assert (event.before, event.after) == (case["visual_tokens_before"], case["visual_tokens_after"])
    if f"{name}/tlbr" in tensors:
        assert torch.equal(event.merged.boxes.int(), tensors[f"{name}/tlbr"])
        assert torch.equal(event.merged.counts.int(), tensors[f"{name}/num_patches_per_node"])
    check(out, tensors, case, name)


def test_the_stock_class_finds_its_video(models, tensors):
    """Plain API: pixel values in, the newline that the stock class appends stays out of the
    grid."""
    model, _, span = prompt(models, tensors, CASES[STTM[0]])
    ids = tensors["inputs/video_input_ids"].flatten()
    video = torch.full((span.length + 1,), model.config.video_token_id)
    ids = torch.cat([ids[:SYSTEM], video, ids[SYSTEM + 1 :]])[None]
    config = STTMConfig(0.8, 0.8, start_layer=1)
    with reduce_tokens(model, config) as report:
        logits = model(input_ids=ids, pixel_values_videos=tensors["inputs/pixel_values"][None]).logits
    (event,) = report.events
    assert event.grid == (FRAMES, SIDE, SIDE)
    assert logits.shape[1] == ids.shape[1] - event.before + event.after < ids.shape[1]
