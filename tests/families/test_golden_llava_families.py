"""Tower, projector, pooling, newline modes and baseline logits against recordings of the published
code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sttm_lmms.families import family_of, layout_of
from sttm_lmms.families.llava import newline_embedding, newline_layout, pool, project, run_vision_tower

GOLDEN = Path(__file__).parents[1] / "golden" / "llava"
CASES = json.loads((GOLDEN / "cases.json").read_text())["cases"]
BASELINES = [name for name in CASES if "_base_" in name]
FAMILY = {"video": "llava_video", "onevision": "llava_onevision"}


@pytest.fixture(scope="module")
def tensors():
    return load_file(GOLDEN / "cases.safetensors")


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def models(request):
    found = {}
    for short, name in FAMILY.items():
        family, layout = layout_of(GOLDEN / f"{name}_tiny")
        assert (family.name, layout) == (name, "original")
        found[short] = family.load_model(
            GOLDEN / f"{name}_tiny", dtype=torch.float32, attn_implementation=request.param
        )
    return found


@torch.no_grad()
def test_tower_and_projector(models, tensors):
    tower = run_vision_tower(models["video"], tensors["inputs/pixel_values"])
    name = "video_base_no_token"
    torch.testing.assert_close(tower[[0, 11]], tensors[f"{name}/vision_tower_out_frames_0_11"], atol=1e-5, rtol=0)
    torch.testing.assert_close(
        project(models["video"], tower)[0], tensors[f"{name}/projector_out_frame_0"], atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("name", BASELINES)
@torch.no_grad()
def test_baseline(models, tensors, name):
    settings = CASES[name]["settings"]
    model = models[settings["ckpt"]]
    ids = tensors[f"inputs/{settings['ckpt']}_input_ids"]
    start = int((ids == -200).nonzero())
    pooled = pool(model, project(model, run_vision_tower(model, tensors["inputs/pixel_values"])))
    visual = newline_layout(pooled, newline_embedding(model), settings["newline"])
    assert len(visual) == CASES[name]["visual_tokens_before"]
    embed = model.get_input_embeddings()
    embeds = torch.cat([embed(ids[:start]), visual, embed(ids[start + 1 :])])
    if f"{name}/inputs_embeds" in tensors:
        torch.testing.assert_close(embeds, tensors[f"{name}/inputs_embeds"], atol=1e-5, rtol=0)
    else:
        stats = torch.stack([embeds.double().sum(1), embeds.double().norm(dim=1)], 1).float()
        torch.testing.assert_close(stats, tensors[f"{name}/inputs_embeds_rowstats"], atol=1e-4, rtol=1e-5)
    logits = model(inputs_embeds=embeds[None], logits_to_keep=1).logits[0, -1]
    torch.testing.assert_close(logits, tensors[f"{name}/last_logits"], atol=1e-4, rtol=0)


def test_settings_come_from_the_checkpoint(models):
    video, onevision = models["video"], models["onevision"]
    assert (video.config.mm_newline_position, video.config.add_time_instruction) == ("grid", True)
    assert (onevision.config.mm_newline_position, onevision.config.add_time_instruction) == ("one_token", False)
    assert video.config.vision_config.num_hidden_layers == 2  # the file's tower has three: the last is never run
    assert (family_of(video).name, family_of(onevision).name) == ("llava_video", "llava_onevision")
