"""Rotary decoders whose layers attend in different ways: reduced tokens get the masks and tables of
their own layer."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
import transformers as hf
from footage import moving_squares

from sttm_lmms import (
    STTMConfig,
    UnsupportedModelError,
    VideoSpan,
    encode_video,
    get_method,
    merge_video_tokens,
    reduce_tokens,
)

WINDOW, SPAN, LENGTH = 48, VideoSpan(7, (6, 6, 6)), 232
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 96,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ALTERNATING = ["sliding_attention", "full_attention"] * 2
DECODERS: dict[str, Callable[[], Any]] = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES)),
    "qwen2 with layer types": lambda: hf.Qwen2ForCausalLM(
        hf.Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=2)
    ),
    "qwen2 with its window off": lambda: hf.Qwen2ForCausalLM(
        hf.Qwen2Config(**SIZES, use_sliding_window=False, sliding_window=WINDOW)
    ),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**SIZES, sliding_window=WINDOW)),
    "mistral without a window": lambda: hf.MistralForCausalLM(hf.MistralConfig(**SIZES, sliding_window=None)),
    "mixtral": lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**SIZES, sliding_window=WINDOW)),
    "phi3": lambda: hf.Phi3ForCausalLM(hf.Phi3Config(**SIZES, sliding_window=WINDOW)),
    "starcoder2": lambda: hf.Starcoder2ForCausalLM(hf.Starcoder2Config(**SIZES, sliding_window=WINDOW)),
    "gemma3": lambda: hf.Gemma3ForCausalLM(
        hf.Gemma3TextConfig(**SIZES, head_dim=16, sliding_window=WINDOW, layer_types=ALTERNATING)
    ),
}


@pytest.fixture(scope="module", params=DECODERS)
def model(request):
    torch.manual_seed(0)
    model = DECODERS[request.param]().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "layers" in name:
                weight.mul_(4.0)  # so that attention is not nearly uniform
    return model


@pytest.fixture(scope="module")
def embeds():
    return torch.randn(1, LENGTH, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("start_layer", [0, 1, 3])
def test_merging_nothing_is_the_stock_decoder(model, embeds, start_layer):
    arguments = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    arguments |= {"return_dict_in_generate": True, "output_logits": True}
    stock = model.generate(inputs_embeds=embeds, **arguments)
    with reduce_tokens(model, STTMConfig(1.5, 1.5, start_layer=start_layer), spans=[SPAN]):
        found = model.generate(inputs_embeds=embeds, **arguments)
    for ours, theirs in zip(found.logits, stock.logits, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_merging_in_front_of_the_first_layer_is_the_stock_decoder_on_merged_tokens(model, embeds):
    config = STTMConfig(0.2, 0.2, start_layer=0)
    video = embeds[0, SPAN.start : SPAN.end].view(*SPAN.grid, -1)
    merged = merge_video_tokens(video, config, head_dim=16)
    assert len(merged) < SPAN.length
    short = torch.cat([embeds[:, : SPAN.start], merged.features[None], embeds[:, SPAN.end :]], dim=1)
    with torch.inference_mode():
        expected = model(inputs_embeds=short).logits
        with reduce_tokens(model, config, spans=[SPAN]):
            found = model(inputs_embeds=embeds).logits
    torch.testing.assert_close(found, expected)


def test_attention_over_keys_that_a_window_has_dropped_is_refused(embeds):
    model = DECODERS["mistral"]().eval()
    message = f"holds {WINDOW - 1} of {LENGTH} tokens"
    with (
        torch.inference_mode(),
        pytest.raises(UnsupportedModelError, match=message),
        reduce_tokens(model, get_method("fastv")(budget=0.5), spans=[SPAN]),
    ):
        model(inputs_embeds=embeds)


def test_a_prefix_behind_a_window_serves_several_questions(tiny):
    """A window drops what it has passed, so that a prefix cannot be cut back: each question
    continues a copy."""
    stock, processor = tiny("llava_video")
    config = deepcopy(stock.config)
    config.text_config.sliding_window = 64
    config.text_config.layer_types = ["full_attention"] + ["sliding_attention"] * 3
    torch.manual_seed(0)
    model = hf.LlavaOnevisionForConditionalGeneration(config).eval()
    clip, questions = moving_squares(0, 8), ("Why?", "What moves in this video?", "Why?")
    shared = encode_video(model, processor, clip, STTMConfig(budget=0.3))
    alone = [encode_video(model, processor, clip, STTMConfig(budget=0.3)).ask(question) for question in questions]
    assert [shared.ask(question) for question in questions] == alone
