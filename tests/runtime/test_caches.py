"""What people do to a KV cache, on a reduced one: chats, roll-backs, copies, beams, selections,
several contexts.

The reference is slow and obvious: one prefill of the prompt, then every further token as a step of
its own, which `test_slow_decoder.py` compares with a decoder that is written out. Every other way
to feed the same tokens must agree.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from chats import GREEDY, MORE, Chat, encoded, log_probability, reducing
from transformers import DynamicCache

from sttm_lmms import STTMConfig, get_method, reduce_tokens
from sttm_lmms.decoder import CACHE
from sttm_lmms.errors import UnsupportedModelError
from sttm_lmms.methods.base import Method
from sttm_lmms.runtime.reduced_cache import ReducedCache

FAMILIES = ("llava_video", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl")
METHODS: dict[str, Method] = {
    "merges nothing": STTMConfig(1.5, 1.5, start_layer=1),
    "sttm": STTMConfig(budget=0.3, start_layer=2),
    "sttm before the decoder": STTMConfig(budget=0.3, start_layer=0),
    "tome": get_method("tome")(budget=0.5, start_layer=1),
    "fastv": get_method("fastv")(budget=0.5, layer=2),
}
MATRIX = [(family, name) for family in FAMILIES for name in ("sttm", "sttm before the decoder")] + [
    (family, name) for family in ("llava_video", "qwen2_vl") for name in ("merges nothing", "tome", "fastv")
]


@pytest.mark.parametrize(("family", "name"), MATRIX)
@torch.inference_mode()
def test_turns_roll_backs_and_copies(models, family: str, name: str) -> None:
    model, tokenizer, inputs = models(family)
    with reducing(model, METHODS[name]):
        chat = Chat(model, inputs)
        asked = chat.ids.shape[1]
        for turn in (MORE, MORE.replace("Why", "And")):
            chat.say(encoded(tokenizer, turn))
        other = copy.copy(chat)
        other.cache, other.logits = copy.deepcopy(chat.cache), dict(chat.logits)
        chat.cache.crop(asked - 1 - chat.cache.get_seq_length())  # the last token of an answer is not cached yet
        chat.ids = chat.ids[:, :asked]
        chat.logits = {index: logits for index, logits in chat.logits.items() if index < asked}
    with reducing(model, METHODS[name]):  # a context for each turn
        chat.say(encoded(tokenizer, MORE.replace("Why", "Who")))
        other.say(encoded(tokenizer, MORE.replace("Why", "When")))
        kept = pickle.loads(pickle.dumps(chat.cache))
        chat.cache = kept
        chat.say(encoded(tokenizer, MORE))
        chat.check()
        other.check()


@pytest.mark.parametrize(("family", "name"), MATRIX)
@torch.inference_mode()
def test_ways_to_generate(models, family: str, name: str) -> None:
    model, tokenizer, inputs = models(family)
    stock = model.generate(**inputs, **GREEDY, max_new_tokens=12)
    with reducing(model, METHODS[name]):
        greedy = Chat(model, inputs, tokens=12)
        assert name != "merges nothing" or greedy.ids.equal(stock)
        if name == "fastv":  # it looks at the last token, which may be a candidate
            with pytest.raises(UnsupportedModelError, match="where the prompt ends"):
                Chat(model, inputs, prompt_lookup_num_tokens=3)
        else:
            lookup = Chat(model, inputs, tokens=12, prompt_lookup_num_tokens=3)
            assert lookup.ids.equal(greedy.ids)
            lookup.check()
            with pytest.raises(UnsupportedModelError):  # stock code feeds the whole sequence once more
                lookup.say(encoded(tokenizer, MORE))
        beams = model.generate(
            **inputs, **GREEDY, max_new_tokens=4, num_beams=3, num_return_sequences=2, length_penalty=0.0,
            return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        length = inputs["input_ids"].shape[1]
        for sequence, score in zip(beams.sequences, beams.sequences_scores, strict=True):
            assert score.item() == pytest.approx(log_probability(model, inputs, sequence[length:]), abs=1e-4)


@pytest.mark.parametrize("start_layer", [0, 2])
@pytest.mark.parametrize("family", ["llava_video", "qwen2_vl"])
@torch.inference_mode()
def test_rows_of_a_padded_batch_are_selected_and_repeated(models, family: str, start_layer: int) -> None:
    """What beams and searches do to a cache, row by row, against single prompts."""
    model, _, inputs = models(family)
    ids, pads, token = inputs["input_ids"], 4, torch.tensor([[7]])
    length = ids.shape[1]
    shorter = torch.cat([torch.zeros(1, pads, dtype=torch.long), ids[:, : -2 * pads], ids[:, -pads:]], 1)
    batch = {key: torch.cat([value] * 2) for key, value in inputs.items()}
    batch["input_ids"], batch["attention_mask"] = torch.cat([ids, shorter]), torch.ones(2, length, dtype=torch.long)
    batch["attention_mask"][1, :pads] = 0
    if "mm_token_type_ids" in inputs:
        batch["mm_token_type_ids"][1] = batch["mm_token_type_ids"][1].roll(pads)
    tokenwise = ("input_ids", "attention_mask", "mm_token_type_ids")
    with reduce_tokens(model, STTMConfig(0.9, 0.9, start_layer=start_layer)):
        alone = []
        for row in range(2):
            given = {**inputs, **{key: batch[key][row : row + 1, row * pads :] for key in tokenwise if key in inputs}}
            cache = getattr(model(**given, use_cache=True), CACHE)
            alone.append(model(input_ids=token, use_cache=True, **{CACHE: cache}).logits[0])
        cache = getattr(model(**batch, use_cache=True), CACHE)
        cache.batch_repeat_interleave(2)
        cache.reorder_cache(torch.tensor([3, 2, 1, 0]))
        cache.batch_select_indices(torch.tensor([0, 3]))
        mask = torch.cat([batch["attention_mask"].flip(0), torch.ones(2, 1, dtype=torch.long)], 1)
        found = model(input_ids=token.expand(2, 1), attention_mask=mask, use_cache=True, **{CACHE: cache}).logits
    torch.testing.assert_close(found, torch.stack(alone[::-1]), atol=1e-4, rtol=1e-4)


def test_an_empty_cache_has_no_rows_to_repeat() -> None:
    cache = ReducedCache.take_over(DynamicCache(), layers=2, method=None)
    cache.batch_repeat_interleave(2)
    assert cache.get_seq_length() == 0


@torch.inference_mode()
def test_what_cannot_be_continued_is_refused(models) -> None:
    model, tokenizer, inputs = models("llava_video")
    more, method = encoded(tokenizer, MORE), METHODS["sttm before the decoder"]

    def filled() -> Any:
        return getattr(model(**inputs, use_cache=True), CACHE)

    def go_on(cache: Any, **given: Any) -> None:
        model(input_ids=more, use_cache=True, **{CACHE: cache}, **given)

    with reduce_tokens(model, method):
        cache, rebuilt, cut, by_hand = filled(), DynamicCache(filled()), filled(), filled()
        length = cache.get_seq_length()
        assert length == inputs["input_ids"].shape[1]
        inside = int((inputs["input_ids"][0] == model.config.video_token_id).nonzero()[0]) + 40
        with pytest.raises(UnsupportedModelError, match=f"cannot be cut back to {inside} tokens"):
            cut.crop(inside - length)
        go_on(cut)  # nothing had been cut
        by_hand.layers[2].crop(-3)
        with pytest.raises(UnsupportedModelError, match=r"copy\.deepcopy"):
            go_on(by_hand)
        for layer in (by_hand.layers[0], by_hand.layers[1], by_hand.layers[3]):
            layer.crop(-3)
        go_on(by_hand)
        for layer in by_hand.layers:
            layer.crop(-60)
        with pytest.raises(UnsupportedModelError, match="by hand"):
            go_on(by_hand)
        with pytest.raises(UnsupportedModelError, match="columns"):
            go_on(rebuilt, attention_mask=torch.ones(1, length + more.shape[1], dtype=torch.long))
    with (
        reduce_tokens(model, STTMConfig(budget=0.4)),
        pytest.raises(UnsupportedModelError, match=r"filled with STTMConfig.*budget=0\.3.*not with.*budget=0\.4"),
    ):
        go_on(cache)
    with pytest.raises(UnsupportedModelError, match=r"inside of reduce_tokens"):
        go_on(cache)
    cache.reset()  # and then it is a cache like any other
    expected = model(**inputs).logits
    assert model(**inputs, use_cache=True, **{CACHE: cache}).logits.equal(expected)
    go_on(cache)


@torch.inference_mode()
def test_a_cache_goes_back_to_what_stood_before_the_video(models) -> None:
    model, tokenizer, inputs = models("llava_video")
    system = encoded(tokenizer, "<|im_start|>system\nYou are brief.<|im_end|>\n")
    ids = torch.cat([system, inputs["input_ids"]], 1)
    whole = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with reduce_tokens(model, METHODS["sttm"]):
        expected = model(**whole).logits[:, -1]
        cache = getattr(model(input_ids=system, use_cache=True), CACHE)
        for _ in range(2):
            found = model(**{**whole, "input_ids": inputs["input_ids"]}, use_cache=True, **{CACHE: cache}).logits[:, -1]
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
            cache.crop(system.shape[1] - cache.get_seq_length())
            assert {layer.keys.shape[-2] for layer in cache.layers} == {system.shape[1]}
