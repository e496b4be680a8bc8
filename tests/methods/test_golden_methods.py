"""Every recorded prompt of the published code, end to end: ``reduce_tokens`` on a plain Qwen2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import recorded
import torch
from recorded import CASES, LLM, WORKS, tensor

from sttm_lmms.runtime import reduce_tokens


@contextmanager
def watch(model: Any) -> Iterator[dict[str, list[list[torch.Tensor]]]]:
    """Per forward pass and layer: the cosines that rotate queries and keys, and the output at the
    last position."""
    seen: dict[str, list[list[torch.Tensor]]] = {"cos": [], "hidden": []}
    layers = model.model.layers

    def before_attention(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
        if len(seen["cos"]) == 0 or len(seen["cos"][-1]) == len(layers):
            seen["cos"].append([])
        seen["cos"][-1].append(kwargs["position_embeddings"][0][0])

    def after_layer(_: Any, __: Any, output: Any) -> None:
        if len(seen["hidden"]) == 0 or len(seen["hidden"][-1]) == len(layers):
            seen["hidden"].append([])
        seen["hidden"][-1].append((output[0] if isinstance(output, tuple) else output)[0, -1])

    handles = [layer.self_attn.register_forward_pre_hook(before_attention, with_kwargs=True) for layer in layers]
    handles += [layer.register_forward_hook(after_layer) for layer in layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def cosines(model: Any, positions: torch.Tensor) -> torch.Tensor:
    angle = positions[:, None].float() * model.model.rotary_emb.inv_freq
    return torch.cat((angle, angle), -1).cos()


def kv_lengths(cache: Any) -> list[int]:
    return [layer.keys.shape[-2] for layer in cache.layers]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", WORKS)
def test_every_recorded_field(name: str, attention: str) -> None:
    embeds, span = recorded.prompt(name)
    model, case = recorded.model(attention), CASES[name]
    logits, tokens, lengths = [], [], []
    with torch.no_grad(), reduce_tokens(model, recorded.method(name), spans=[span]) as report, watch(model) as seen:
        output = model(inputs_embeds=embeds[None], use_cache=True)
        for step in range(6):
            logits.append(output.logits[0, -1])
            tokens.append(int(logits[-1].argmax()))
            lengths.append(kv_lengths(output.past_key_values))
            if step < 5:
                ids = torch.tensor([tokens[-1:]])
                output = model(input_ids=ids, past_key_values=output.past_key_values, use_cache=True)

    assert lengths == case["kv_len_per_step"]
    assert tokens == case["tokens"]
    torch.testing.assert_close(torch.stack(logits), tensor(name, "logits"), atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.stack(seen["hidden"][0]), tensor(name, "last_hidden"), atol=1e-4, rtol=0)
    prefill, steps = tensor(name, "rope_pos"), tensor(name, "decode_rope_pos")
    assert prefill is not None
    assert steps is not None
    for layer, positions in enumerate(prefill):
        expected = cosines(model, positions[positions >= 0])
        torch.testing.assert_close(seen["cos"][0][layer], expected, atol=1e-4, rtol=0)
    for step, positions in enumerate(steps, 1):
        got = torch.cat(seen["cos"][step])
        torch.testing.assert_close(got, cosines(model, positions), atol=1e-4, rtol=0)

    if not report.latest:
        assert case["case"]["method"] == "streamingllm"
        return
    event = report.latest[0]
    for field in ("kept_idx", "node_idx"):
        if (survivors := tensor(name, field)) is not None:
            assert torch.equal(event.index, survivors)
    if (owner := tensor(name, "assign")) is not None:
        assert torch.equal(event.merged.source_map.flatten(), owner)
    if (size := tensor(name, "size")) is not None:
        assert torch.equal(event.merged.counts, size)


@pytest.mark.parametrize("name", WORKS)
def test_generate(name: str) -> None:
    embeds, span = recorded.prompt(name)
    model = recorded.model()
    with reduce_tokens(model, recorded.method(name), spans=[span]):
        ids = model.generate(
            inputs_embeds=embeds[None],
            attention_mask=torch.ones(1, len(embeds), dtype=torch.long),
            max_new_tokens=6,
            do_sample=False,
        )
    assert ids[0].tolist() == CASES[name]["tokens"]


@pytest.mark.parametrize("name", [name for name in LLM if name not in WORKS and "snippet" not in name])
def test_prompts_on_which_the_published_code_crashes(name: str) -> None:
    embeds, span = recorded.prompt(name)
    model = recorded.model()
    with reduce_tokens(model, recorded.method(name), spans=[span]) as report:
        mask = torch.ones(1, len(embeds), dtype=torch.long)
        ids = model.generate(inputs_embeds=embeds[None], attention_mask=mask, max_new_tokens=6, do_sample=False)
    assert ids.shape == (1, 6)
    assert report.kept_tokens < report.visual_tokens
