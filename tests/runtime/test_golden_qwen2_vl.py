"""The stock Qwen2-VL class under `reduce_tokens` against the published implementation, case by
case."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen2VLForConditionalGeneration

from sttm_lmms import STTMConfig, reduce_tokens

GOLDEN = Path(__file__).parents[1] / "golden" / "qwen2_vl"
META = json.loads((GOLDEN / "cases.json").read_text())
CASES = {name: case for name, case in META["cases"].items() if case["method"] in ("sttm", "baseline")}
STTM = [name for name, case in CASES.items() if case["method"] == "sttm"]


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "cases.safetensors")


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request):
    return Qwen2VLForConditionalGeneration.from_pretrained(
        GOLDEN / "qwen2_vl_tiny", dtype=torch.float32, attn_implementation=request.param
    ).eval()


def inputs(tensors, grid: str) -> dict[str, torch.Tensor]:
    ids = tensors[f"input/{grid}/input_ids"]
    pixels = tensors[f"input/{grid}/pixel_coef"].float() @ tensors["input/pixel_basis"].float() / 1024
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values_videos": pixels,
        "video_grid_thw": tensors[f"input/{grid}/video_grid_thw"],
        "mm_token_type_ids": (ids == 507).int() * 2,
    }


def config_of(case: dict, **changes) -> STTMConfig:
    return STTMConfig(
        spatial_threshold=case["threshold"],
        temporal_threshold=case["temporal_threshold"],
        root_level=case["root_level"],
        start_layer=case["start_layer"],
        weighted_avg=case["weighted_avg"],
        **changes,
    )


def generate(model, batch, **kwargs):
    return model.generate(
        **batch,
        max_new_tokens=6,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        eos_token_id=None,
        pad_token_id=0,
        **kwargs,
    )


@pytest.mark.parametrize("name", STTM)
def test_case(model, tensors, name):
    case = CASES[name]
    batch = inputs(tensors, case["grid"])
    with reduce_tokens(model, config_of(case, decode_positions="reference")) as report:
        out = generate(model, batch)
    (event,) = report.events
    assert event.after == case["visual_after"]
    assert event.layer == case["start_layer"]
    assert torch.equal(event.merged.boxes.int(), tensors[f"case/{name}/tlbr"])
    assert torch.equal(event.merged.counts.int(), tensors[f"case/{name}/num_patches"])
    lengths = [layer.get_seq_length() for layer in out.past_key_values.layers]
    assert lengths == case["kv_lengths_last"]
    torch.testing.assert_close(torch.cat(out.logits), tensors[f"case/{name}/logits"], atol=1e-4, rtol=0)
    assert out.sequences[0, batch["input_ids"].shape[1] :].tolist() == case["greedy_ids"]


@pytest.mark.parametrize("name", STTM[::7])
def test_positions_and_merged_states(model, tensors, name):
    """What the start layer receives: the survivors' own (t, h, w) positions and the recorded
    features."""
    case = CASES[name]
    decoder = model.model.language_model
    seen = {}

    def before(_, args, kwargs):
        seen["hidden"] = args[0] if args else kwargs["hidden_states"]
        seen["rotary"] = kwargs["position_embeddings"]

    with reduce_tokens(model, config_of(case)):
        handle = decoder.layers[case["start_layer"]].register_forward_pre_hook(before, with_kwargs=True)
        try:
            model(**inputs(tensors, case["grid"]))
        finally:
            handle.remove()
    expected = decoder.rotary_emb(seen["hidden"], tensors[f"case/{name}/position_ids"].long())
    torch.testing.assert_close(seen["rotary"], expected)
    visual = seen["hidden"][0, case["visual_start"] : case["visual_start"] + case["visual_after"]]
    torch.testing.assert_close(visual.norm(dim=-1), tensors[f"case/{name}/merged_norm"], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(visual.sum(dim=-1), tensors[f"case/{name}/merged_sum"], atol=1e-4, rtol=1e-4)


def test_missing_token_types_are_refused(model, tensors):
    """`generate` would silently fall back to 1-D positions."""
    from sttm_lmms.errors import UnsupportedModelError

    batch = inputs(tensors, "even")
    del batch["mm_token_type_ids"]
    with (
        pytest.raises(UnsupportedModelError, match="mm_token_type_ids"),
        reduce_tokens(model, config_of(CASES[STTM[0]])),
    ):
        generate(model, batch)
