"""Decoders with recurrent layers (Qwen3.5): what a state that cannot be cut back allows.

As in `test_caches.py`, the reference is one prefill and then every further token as a step of its
own. `test_new_families.py` compares that with a decoder that is written out.
"""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from chats import GREEDY, MORE, Chat, encoded, log_probability, reducing
from footage import moving_squares
from method_settings import NAMES, method

from sttm_lmms import STTMConfig, encode_video, reduce_tokens
from sttm_lmms.decoder import CACHE, cache_tensors
from sttm_lmms.errors import CheckpointError, UnsupportedModelError
from sttm_lmms.families import get_family, load_pretrained, template
from sttm_lmms.runtime import Engine, GenerationSettings, Request
from sttm_lmms.runtime.memory import Workload, estimate_memory
from sttm_lmms.runtime.prefix import prefill_prefix
from sttm_lmms.runtime.reducer import TokenReducer
from sttm_lmms.testing.tiny import build_tiny_checkpoint
from sttm_lmms.video import VideoSettings

FAMILY = "qwen3_5"
LAYERS = [0, 1, 2, 3]  # 0 and 2 are recurrent
SETTINGS = VideoSettings(max_frames=6, fps=2.0, min_pixels=32 * 32, max_pixels=96 * 96)
VIDEOS = [moving_squares(seed, 6, 64, 64) for seed in (0, 1)]
layers = pytest.mark.parametrize("layer", LAYERS)


def merging(layer: int) -> STTMConfig:
    return STTMConfig(budget=0.4, start_layer=layer)


@layers
@torch.inference_mode()
def test_turns_and_copies(models, layer: int) -> None:
    model, tokenizer, inputs = models(FAMILY)
    with reducing(model, merging(layer)):
        chat = Chat(model, inputs)
        chat.say(encoded(tokenizer, MORE))
        other = copy.copy(chat)
        other.cache, other.logits = copy.deepcopy(chat.cache), dict(chat.logits)
    with reducing(model, merging(layer)):  # a context for each turn
        chat.say(encoded(tokenizer, MORE.replace("Why", "Who")))
        other.cache = pickle.loads(pickle.dumps(other.cache))
        other.say(encoded(tokenizer, MORE.replace("Why", "When")))
        chat.check()
        other.check()


@layers
@torch.inference_mode()
def test_beams(models, layer: int) -> None:
    model, _, inputs = models(FAMILY)
    length = inputs["input_ids"].shape[1]
    how = {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.0, "output_scores": True}
    with reducing(model, merging(layer)):
        beams = model.generate(**inputs, **GREEDY, **how, max_new_tokens=4, return_dict_in_generate=True)
        for sequence, score in zip(beams.sequences, beams.sequences_scores, strict=True):
            assert score.item() == pytest.approx(log_probability(model, inputs, sequence[length:]), abs=1e-4)


@torch.inference_mode()
def test_rows_are_selected_and_repeated(models) -> None:
    model, _, inputs = models(FAMILY)
    token = torch.tensor([[7], [9]])
    with reducing(model, merging(1)):
        cache = getattr(model(**inputs, use_cache=True), CACHE)
        cache.batch_repeat_interleave(3)
        cache.reorder_cache(torch.tensor([2, 1, 0]))
        cache.batch_select_indices(torch.tensor([0, 2]))
        found = model(input_ids=token, use_cache=True, **{CACHE: cache}).logits
        for row in range(2):
            alone = getattr(model(**inputs, use_cache=True), CACHE)
            expected = model(input_ids=token[row : row + 1], use_cache=True, **{CACHE: alone}).logits[0]
            torch.testing.assert_close(found[row], expected, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_a_state_is_not_cut_back(models) -> None:
    model, tokenizer, inputs = models(FAMILY)
    more = encoded(tokenizer, MORE)
    with reducing(model, merging(1)):
        cache = getattr(model(**inputs, use_cache=True), CACHE)
        expected = model(input_ids=more, use_cache=True, **{CACHE: copy.deepcopy(cache)}).logits
        with pytest.raises(UnsupportedModelError, match=r"recurrent layers hold a state.*copy\.deepcopy"):
            cache.crop(-2)
        with pytest.raises((UnsupportedModelError, ValueError, RuntimeError)):
            model.generate(**inputs, **GREEDY, max_new_tokens=6, prompt_lookup_num_tokens=3)
    with pytest.raises(UnsupportedModelError, match=r"inside of reduce_tokens"):
        model(input_ids=more, use_cache=True, **{CACHE: cache})
    with reducing(model, merging(1)):  # nothing of that has changed the cache
        assert model(input_ids=more, use_cache=True, **{CACHE: cache}).logits.equal(expected)
        cache.layers[1].crop(-3)
        with pytest.raises(UnsupportedModelError, match="cut by hand"):
            model(input_ids=more, use_cache=True, **{CACHE: cache})
    cache.reset()  # and then it is a cache like any other
    expected = model(**inputs).logits
    torch.testing.assert_close(model(**inputs, use_cache=True, **{CACHE: cache}).logits, expected)


@torch.inference_mode()
def test_padding_behind_cached_tokens_is_refused(models) -> None:
    """In front of a row it changes nothing; between two tokens, stock code lets the state decay and
    feeds zeros to the convolution."""
    model, tokenizer, inputs = models(FAMILY)
    more = encoded(tokenizer, MORE)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), more], 1)
    mask = torch.cat([inputs["attention_mask"], (torch.arange(padded.shape[1]) >= 3).long()[None]], 1)
    positions = torch.arange(padded.shape[1]).expand(3, 1, -1) + inputs["input_ids"].shape[1]
    whole = {"input_ids": padded, "attention_mask": mask, "position_ids": positions, "use_cache": True}
    stock = getattr(model(**inputs, use_cache=True), CACHE)
    alone = {"input_ids": more, "position_ids": positions[..., 3:], CACHE: copy.deepcopy(stock)}
    apart = model(**alone, use_cache=True).logits[:, -1]
    assert (model(**whole, **{CACHE: stock}).logits[:, -1] - apart).abs().max() > 1e-3
    with reducing(model, merging(1)):
        cache = getattr(model(**inputs, use_cache=True), CACHE)
        with pytest.raises(UnsupportedModelError, match="lets the state of recurrent layers decay"):
            model(**whole, **{CACHE: cache})


REFUSED = {"dycoke": "keys and values", "framefusion": "self_attn", "streaming_llm": "is recurrent"}


@pytest.mark.parametrize("name", NAMES)
def test_a_method_works_or_says_why_not(models, name: str) -> None:
    """Refused are those that read the attention of every layer, hide tokens or edit the cache."""
    model, _, inputs = models(FAMILY)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "a reduction was asked for")
        with reduce_tokens(model, method(name)) as report:
            if name in REFUSED:
                with pytest.raises(UnsupportedModelError, match=REFUSED[name]):
                    model.generate(**inputs, **GREEDY, max_new_tokens=3)
                return
            model.generate(**inputs, **GREEDY, max_new_tokens=3)
    assert report.events


def test_a_prefix_is_what_it_was_after_each_question(tiny) -> None:
    """Its states are copied for every question or batch; it waits in host memory with them."""
    model, processor = tiny(FAMILY)
    requests = [
        Request([{"role": "user", "content": [{"type": "video", "video": video}, {"type": "text", "text": text}]}],
                GenerationSettings(max_new_tokens=6))
        for text in ("Why?", "Who?", "And where does it go?", "How?")
        for video in VIDEOS
    ]  # fmt: skip
    for config in (None, merging(1), merging(3)):
        apart = Engine(model, processor, config, video=SETTINGS, reuse="none")
        alone = [answer.text for answer in apart.generate(requests)]
        for how, size in (({}, 1), ({}, 3), ({"host_cache_gb": 1.0}, 2)):
            engine = Engine(model, processor, config, video=SETTINGS, **how)
            assert [engine.generate([request])[0].text for request in requests] == alone
            assert [answer.text for answer in engine.generate(requests, batch_size=size)] == alone
    prefix = encode_video(model, processor, VIDEOS[0], merging(1), settings=SETTINGS)
    again = GenerationSettings.of(max_new_tokens=6, num_beams=2).arguments()
    assert prefix.ask("Why?", **again) == prefix.ask("Why?", **again)


@torch.inference_mode()
def test_the_memory_of_a_prefix_is_known_before(tiny) -> None:
    model, processor = tiny(FAMILY)
    family = get_family(FAMILY)
    video = family.read_video(VIDEOS[0], SETTINGS)
    features = family.vision_features(model, processor, video)
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Why?"}]}]
    prepared = family.prepare(model, processor, messages, [features])
    with TokenReducer(model, merging(2), spans=()) as reducer:
        prefix = prefill_prefix(reducer, prepared)
    work = Workload(
        tuple(features.tensor.shape[:3]),
        kept=prefix.kept_tokens / prefix.visual_tokens,
        start_layer=2,
        text_tokens=prepared.prefix_length - prepared.visual_tokens,
    )
    (need,) = estimate_memory(model, work).values()
    states = sum(t.nbytes for layer in (0, 2) for t in cache_tensors(_only(prefix.cache, layer)))
    text = model.config.text_config
    token = 2 * text.num_key_value_heads * text.head_dim * 4
    assert need.kv == prefix.nbytes + states + 2 * token * (work.text_tokens + work.new_tokens)


def _only(cache, layer: int):
    other = copy.copy(cache)
    other.layers = [cache.layers[layer]]
    return other


def test_a_transformers_without_the_class_is_named(tmp_path, monkeypatch) -> None:
    folder = build_tiny_checkpoint(tmp_path / "tiny", FAMILY)
    monkeypatch.setitem(vars(template.transformers), "Qwen3_5ForConditionalGeneration", None)
    with pytest.raises(CheckpointError, match=r"has no Qwen3_5ForConditionalGeneration; install a newer"):
        load_pretrained(folder)
