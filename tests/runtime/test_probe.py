"""Attention weights as the models compute them, and the stage between attention and MLP."""

from __future__ import annotations

import pytest
import torch

from sttm_lmms import get_method, reduce_tokens
from sttm_lmms.decoder import find_decoder, layer_types, rotary_embedding
from sttm_lmms.methods.base import Stage
from sttm_lmms.runtime.probe import AttentionInputs, hook_mlp

# Gated heads of which a quarter is rotated; neighbouring channels, half of them or all.
FAMILIES = ("llava_video", "qwen2_vl", "qwen3_vl", "qwen3_5", "glm4v", "glm4v_moe", "glm46v", "internvl")
families = pytest.mark.parametrize("family", FAMILIES)


@families
@torch.inference_mode()
def test_attention_weights_are_the_model_s(models, family: str) -> None:
    model, _, inputs = models(family)
    decoder = find_decoder(model)
    with reduce_tokens(model, get_method("fastv")(budget=0.5, layer=2)) as report:
        model(**inputs)
    report.check_reduced()
    attending = [layer for layer, kind in enumerate(layer_types(decoder)) if kind == "full_attention"]
    probe = AttentionInputs(decoder.layers[attending[0]])
    model.set_attn_implementation("eager")
    try:
        weights = model(**inputs, output_attentions=True).attentions
    finally:
        model.set_attn_implementation("sdpa")
    found = probe.weights(0, torch.tensor([5, inputs["input_ids"].shape[1] - 1]), None)
    probe.remove()
    expected = next(layer for layer in weights if layer is not None)
    torch.testing.assert_close(found, expected[0].mean(0)[[5, -1]], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_5", "glm4v", "glm4v_moe"])
@torch.inference_mode()
def test_tokens_leave_between_attention_and_mlp(models, family: str) -> None:
    """GLM-4.1V norms what attention and MLP give before it is added."""
    model, _, _ = models(family)
    decoder = find_decoder(model)
    layer, hidden = decoder.layers[1], torch.randn(1, 12, decoder.config.hidden_size)
    cos_sin = rotary_embedding(decoder, hidden, torch.arange(12).expand(3, 1, -1), 1)
    mask = torch.full((12, 12), -torch.inf).triu(1)[None, None]
    given = {"attention_mask": mask, "position_embeddings": cos_sin}
    handles = hook_mlp(layer, Stage(1, "mlp"), lambda states: states[:, ::2].clone())
    found = layer(hidden, **given)
    for handle in handles:
        handle.remove()
    attended = layer.self_attn(hidden_states=layer.input_layernorm(hidden), **given)[0]
    short = (hidden + getattr(layer, "post_self_attn_layernorm", torch.nn.Identity())(attended))[:, ::2]
    added = layer.mlp(layer.post_attention_layernorm(short))
    expected = short + getattr(layer, "post_mlp_layernorm", torch.nn.Identity())(added)
    torch.testing.assert_close(found[0] if isinstance(found, tuple) else found, expected)
