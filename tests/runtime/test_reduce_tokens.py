"""The plain transformers API under `reduce_tokens`: stock classes, stock processors, no traces left
behind."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from footage import FAMILY_NAMES, VIDEO, moving_squares
from transformers import Qwen2Config, Qwen2ForCausalLM, StaticCache

from sttm_lmms import STTMConfig, reduce_tokens
from sttm_lmms.errors import NothingReducedError, UnsupportedModelError
from sttm_lmms.families import family_of
from sttm_lmms.runtime import Engine, GenerationSettings, Request
from sttm_lmms.testing.tiny import tiny_model
from sttm_lmms.types import VideoSpan

CONFIG = STTMConfig(0.995, 0.995, start_layer=2)
FAMILIES = pytest.mark.parametrize("family", FAMILY_NAMES)


def batch_for(processor, clips: list[np.ndarray], questions: list[str]):
    """Processor output for one video and one question a row, padded on the left."""
    visual = "<|vision_start|><|video_pad|><|vision_end|>" if "Qwen2VL" in type(processor).__name__ else "<video>\n"
    texts = [f"<|im_start|>user\n{visual}{question}<|im_end|>\n<|im_start|>assistant\n" for question in questions]
    processor.tokenizer.padding_side = "left"
    processor.tokenizer.pad_token = "<|endoftext|>"
    videos = [torch.from_numpy(clip).permute(0, 3, 1, 2) for clip in clips]
    return processor(text=texts, videos=videos, padding=True, return_tensors="pt", do_sample_frames=False)


def generate(model, batch, **kwargs):
    arguments = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 260, **kwargs}
    return model.generate(**batch, **arguments)[:, batch["input_ids"].shape[1] :]


@FAMILIES
def test_stock_class_and_processor(tiny, family):
    model, processor = tiny(family)
    batch = batch_for(processor, [moving_squares(0, 8)], ["What moves?"])
    with reduce_tokens(model, CONFIG) as report:
        ids = generate(model, batch)
    (event,) = report.events
    video_tokens = int((batch["input_ids"] == model.config.video_token_id).sum())
    assert event.before == video_tokens - (family != "qwen2_vl")  # the stock OneVision class appends a newline
    assert event.after < event.before
    assert event.merged.source_map.shape == event.grid
    assert ids.shape == (1, 4)
    report.check_reduced()


@FAMILIES
@pytest.mark.parametrize("start_layer", [0, 2])
def test_a_padded_batch_gives_the_rows_of_single_runs(tiny, family, start_layer):
    """Rows keep different numbers of tokens, so the short sequences are padded anew, layer by
    layer."""
    model, processor = tiny(family)
    config = STTMConfig(0.995, 0.995, start_layer=start_layer)
    clips = [moving_squares(0, 8), np.repeat(moving_squares(1, 1), 8, axis=0)]
    questions = ["What moves, and where does it go?", "Why?"]
    singles = []
    with reduce_tokens(model, config) as alone:
        for clip, question in zip(clips, questions, strict=True):
            singles.append(generate(model, batch_for(processor, [clip], [question]))[0])
    with reduce_tokens(model, config) as report:
        together = generate(model, batch_for(processor, clips, questions))
    assert [e.after for e in report.events] == [e.after for e in alone.events]
    assert report.events[0].after != report.events[1].after
    assert torch.equal(together, torch.stack(singles))


@FAMILIES
def test_the_engine_answers_like_the_plain_api(tiny, videos, family):
    model, processor = tiny(family)
    content = [{"type": "video", "video": str(videos[0])}, {"type": "text", "text": "What moves?"}]
    request = Request([{"role": "user", "content": content}], GenerationSettings(max_new_tokens=4))
    (answer,) = Engine(model, processor, CONFIG, video=VIDEO).generate([request])
    adapter = family_of(model)
    features = [adapter.vision_features(model, processor, adapter.read_video(videos[0], VIDEO))]
    prepared = adapter.prepare(model, processor, request.messages, features, newline="no_token")
    with reduce_tokens(model, CONFIG, spans=prepared.spans) as report:
        positions = {} if prepared.position_ids is None else {"position_ids": prepared.position_ids}
        ids = model.generate(
            inputs_embeds=prepared.inputs_embeds,
            attention_mask=torch.ones_like(prepared.input_ids),
            max_new_tokens=4,
            do_sample=False,
            **positions,
        )
    assert answer.text == processor.tokenizer.decode(ids[0], skip_special_tokens=True).strip()
    assert answer.kept_tokens == report.kept_tokens


@FAMILIES
def test_nothing_is_left_behind(tiny, family):
    model, processor = tiny(family)
    batch = batch_for(processor, [moving_squares(0, 8)], ["What moves?"])
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    hooks = {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()}
    plain = generate(model, batch)
    with reduce_tokens(model, CONFIG):
        reduced = generate(model, batch)
    layer = model.model.language_model.layers[3]
    stop = layer.register_forward_pre_hook(_stop)
    with pytest.raises(RuntimeError, match="stop here"), reduce_tokens(model, CONFIG):
        generate(model, batch)
    stop.remove()
    assert {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()} == hooks
    for name, module in model.named_modules():
        assert vars(module).keys() == before[name].keys()
    assert torch.equal(generate(model, batch), plain)
    with reduce_tokens(model, CONFIG):
        assert torch.equal(generate(model, batch), reduced)


def _stop(*_):
    raise RuntimeError("stop here")


def test_two_models_do_not_touch_each_other(tiny):
    first, processor = tiny("llava_video")
    second, _ = tiny_model("llava_video", seed=2)
    batch = batch_for(processor, [moving_squares(0, 8)], ["What moves?"])
    settings = [CONFIG, STTMConfig(0.9, 0.9, start_layer=1)]
    alone = []
    for model, config in zip((first, second), settings, strict=True):
        with reduce_tokens(model, config) as report:
            alone.append((generate(model, batch), report.kept_tokens))
    with reduce_tokens(first, settings[0]) as one, reduce_tokens(second, settings[1]) as two:
        together = [generate(first, batch), generate(second, batch)]
    assert torch.equal(together[0], alone[0][0])
    assert torch.equal(together[1], alone[1][0])
    assert [one.kept_tokens, two.kept_tokens] == [kept for _, kept in alone]


def test_caches_are_forgotten(tiny):
    model, processor = tiny("llava_video")
    batch = batch_for(processor, [moving_squares(0, 8)], ["What moves?"])
    how = {"max_new_tokens": 2, "return_dict_in_generate": True}
    with reduce_tokens(model, CONFIG):
        caches = [weakref.ref(model.generate(**batch, **how).past_key_values) for _ in range(2)]
        gc.collect()
        assert [cache() for cache in caches] == [None, None]


@FAMILIES
def test_thresholds_above_one_change_nothing(tiny, family):
    model, processor = tiny(family)
    batch = batch_for(processor, [moving_squares(0, 8)], ["What moves?"])
    with torch.inference_mode():
        plain = model(**batch).logits
        with reduce_tokens(model, STTMConfig(1.5, 1.5, start_layer=1)) as report:
            same = model(**batch).logits
    torch.testing.assert_close(same, plain, atol=1e-5, rtol=0)
    with pytest.raises(NothingReducedError):
        report.check_reduced()


def test_explicit_spans_on_any_rotary_decoder():
    config = Qwen2Config(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=64,
        vocab_size=64,
        max_position_embeddings=512,
    )
    model = Qwen2ForCausalLM(config).eval()
    frame = torch.randn(1, 16, 32).repeat(4, 1, 1).reshape(1, 64, 32)  # a static video: 4 equal frames of 4x4
    embeds = torch.cat([torch.randn(1, 5, 32), frame, torch.randn(1, 3, 32)], dim=1)
    with (
        torch.inference_mode(),
        reduce_tokens(model, STTMConfig(1.5, 0.9, start_layer=0), spans=[VideoSpan(5, (4, 4, 4))]) as report,
    ):
        logits = model(inputs_embeds=embeds).logits
    assert report.kept_tokens == 16
    assert logits.shape[1] == 5 + 16 + 3


def test_refusals_say_what_is_supported(tiny):
    model, processor = tiny("llava_video")
    batch = batch_for(processor, [moving_squares(0, 8)], ["What moves?"])
    with pytest.raises(ValueError, match=r"layers 0\.\.3"), reduce_tokens(model, STTMConfig(0.5, 0.5, start_layer=4)):
        pass
    with (
        reduce_tokens(model, CONFIG),
        pytest.raises(UnsupportedModelError, match="already"),
        reduce_tokens(model, CONFIG),
    ):
        pass
    with pytest.raises(UnsupportedModelError, match="spans"), reduce_tokens(model, CONFIG):
        model(inputs_embeds=torch.zeros(1, 9, 64))
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=2000)
    with pytest.raises(UnsupportedModelError, match="DynamicCache"), reduce_tokens(model, CONFIG):
        model(**batch, past_key_values=cache, use_cache=True)
    with pytest.raises(UnsupportedModelError, match="labels"), reduce_tokens(model, CONFIG):
        model(**batch, labels=batch["input_ids"])
    with pytest.raises(UnsupportedModelError, match="rotary"), reduce_tokens(torch.nn.Linear(2, 2), CONFIG):
        pass
    with pytest.raises(TypeError, match="STTMConfig"), reduce_tokens(model, {"budget": 0.5}):
        pass
    gpt = Qwen2ForCausalLM(Qwen2Config(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, vocab_size=64))
    with pytest.raises(UnsupportedModelError, match="llava_onevision"), reduce_tokens(gpt, CONFIG):
        gpt(input_ids=torch.zeros(1, 4, dtype=torch.long))


def test_bfloat16(tiny):
    model, processor = tiny_model("llava_video", seed=1)
    model = model.to(torch.bfloat16)
    batch = batch_for(processor, [moving_squares(0, 8)], ["What moves?"])
    batch["pixel_values_videos"] = batch["pixel_values_videos"].to(torch.bfloat16)
    with reduce_tokens(model, CONFIG) as report:
        assert generate(model, batch).shape == (1, 4)
    assert 0 < report.kept_tokens < report.visual_tokens


@FAMILIES
def test_generated_tokens_go_on_where_transformers_goes_on(tiny, family):
    """More steps in time than rows or columns: there the text's positions are below the video's."""
    model, processor = tiny(family)
    batch = batch_for(processor, [moving_squares(0, 24, height=56, width=56)], ["What moves?"])
    plain = generate(model, batch, max_new_tokens=8)
    with reduce_tokens(model, STTMConfig(1.5, 1.5, start_layer=1)):
        assert torch.equal(generate(model, batch, max_new_tokens=8), plain)
