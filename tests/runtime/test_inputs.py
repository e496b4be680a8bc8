"""What a forward pass is given is what it uses: ids at any module, positions, spans of rows, and
what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from footage import moving_squares
from PIL import Image
from transformers import Qwen2Config, Qwen2ForCausalLM

from sttm_lmms import STTMConfig, UnsupportedModelError, VideoSpan, get_method, reduce_tokens

NOTHING, HALF = STTMConfig(1.5, 1.5), STTMConfig(budget=0.5)
LLAVA_SEES, QWEN_SEES = "<video>\n", "<|vision_start|><|video_pad|><|vision_end|>"


def inputs_of(processor: Any, text: str, videos: int = 0, images: int = 0, seed: int = 0) -> dict[str, Any]:
    given: dict[str, Any] = {}
    if videos:
        clips = [torch.from_numpy(moving_squares(seed + n, 6)).permute(0, 3, 1, 2) for n in range(videos)]
        given |= {"videos": clips, "do_sample_frames": False}
    if images:
        given["images"] = [Image.fromarray(moving_squares(seed + 9, 1)[0])]
    return dict(processor(text=[text], return_tensors="pt", **given))


def turn(text: str) -> str:
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


def logits(model: Any, inputs: dict[str, Any], **kwargs: Any) -> Any:
    settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 260, "max_new_tokens": 3}
    return model.generate(**inputs, **settings, return_dict_in_generate=True, output_logits=True, **kwargs)


LATER = {"image": "<|vision_start|><|image_pad|><|vision_end|>", "video": QWEN_SEES, "text": ""}
PIXELS = ("pixel_values", "pixel_values_videos")
GRIDS = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")


def both(first: dict[str, Any], later: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    parts = {name: [torch.as_tensor(part[name]) for part in (first, later) if name in part] for name in names}
    return {name: torch.cat(found) for name, found in parts.items() if found}


@torch.inference_mode()
@pytest.mark.parametrize("shown", LATER)
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_a_later_turn_sees_what_one_prefill_sees(tiny, family, shown):
    """An image or a video behind a reduced video: the logits of one prefill of both turns."""
    model, processor = tiny(family)
    first = inputs_of(processor, turn(f"{QWEN_SEES}What moves?"), videos=1)
    counts = {"images": int(shown == "image"), "videos": int(shown == "video")}
    later = inputs_of(processor, f"No.<|im_end|>\n{turn(LATER[shown] + 'And here?')}", **counts, seed=5)
    chat = both(first, later, GRIDS)
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        chat[name] = torch.cat([first[name], later[name]], dim=1)
    positions, _ = model.model.get_rope_index(**chat)
    new = {name: later[name] for name in ("input_ids", "mm_token_type_ids", *PIXELS, *GRIDS) if name in later}
    for config in (NOTHING, HALF):
        with reduce_tokens(model, config) as report:
            whole = model(**chat, **both(first, later, PIXELS)).logits
            caches = [model(**first, use_cache=True).past_key_values for _ in range(2)]
            place = positions[..., first["input_ids"].shape[1] :]
            found = model(**new, position_ids=place, past_key_values=caches[0]).logits
            if shown == "image":  # transformers gives the grids of a chat to the pixels of a turn: no second video
                turns = logits(model, {**chat, "pixel_values": later["pixel_values"]}, past_key_values=caches[1])
                torch.testing.assert_close(turns.logits[0], whole[:, -1], atol=2e-5, rtol=1e-4)
        assert len(report.events) == (5 if shown == "video" else 3)
        count = min(whole.shape[1], found.shape[1])
        torch.testing.assert_close(found[:, -count:], whole[:, -count:], atol=2e-5, rtol=1e-4)


def test_an_image_whose_positions_transformers_flattened_is_refused(tiny):
    model, processor = tiny("qwen2_vl")
    first = inputs_of(processor, turn(f"{QWEN_SEES}What?"), videos=1)
    later = inputs_of(processor, turn(f"{LATER['image']}And?"), images=1)
    with torch.inference_mode(), reduce_tokens(model, HALF):
        cache = model(**first, use_cache=True).past_key_values
        with pytest.raises(UnsupportedModelError, match=r"image of .* tokens without 3-D"):
            model(**later, past_key_values=cache)


@pytest.fixture(scope="module")
def qwen2():
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96}
    return Qwen2ForCausalLM(Qwen2Config(**sizes, num_hidden_layers=4, vocab_size=96)).eval()


SPAN = VideoSpan(5, (4, 4, 4))
EMBEDS = torch.randn(2, 76, 64, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def test_positions_that_a_caller_gives_are_used_or_refused(qwen2):
    keeps, renumbers, usual = get_method("fastv")(budget=0.5), HALF, torch.arange(76)[None]
    stretched = torch.cat([usual[:, :70], usual[:, 70:] + 9], dim=1)
    found = {}
    for name, positions in {"none": None, "usual": usual, "stretched": stretched}.items():
        stock = qwen2(inputs_embeds=EMBEDS[:1], position_ids=positions).logits
        with reduce_tokens(qwen2, NOTHING if name != "stretched" else get_method("fastv")(budget=1.0), spans=[SPAN]):
            torch.testing.assert_close(qwen2(inputs_embeds=EMBEDS[:1], position_ids=positions).logits, stock)
        with reduce_tokens(qwen2, keeps, spans=[SPAN]):
            found[name] = qwen2(inputs_embeds=EMBEDS[:1], position_ids=positions).logits
    assert found["none"].equal(found["usual"])
    assert not found["stretched"].allclose(found["usual"])
    with reduce_tokens(qwen2, renumbers, spans=[SPAN]):
        cache = qwen2(inputs_embeds=EMBEDS[:1], position_ids=usual).past_key_values
        step = {"input_ids": torch.tensor([[7]]), "past_key_values": cache}
        for given in (stretched, usual + 3):
            with pytest.raises(UnsupportedModelError, match="position_ids do not count"):
                qwen2(inputs_embeds=EMBEDS[:1], position_ids=given)
        with pytest.raises(UnsupportedModelError, match="position_ids do not count"):
            qwen2(**step, position_ids=torch.tensor([[80]]))
        qwen2(**step, position_ids=torch.tensor([[76]]))


def _three_calls(model: Any, axes: int | None) -> list[torch.Tensor]:
    """Prefill, continuation and decode step of a decoder with positions that leave gaps."""
    decoder, cache, states = model.model.language_model, None, []
    for start, length in ((0, 70), (90, 4), (120, 1)):
        places = torch.arange(start, start + length)[None]
        places = places if axes is None else places.expand(axes, 1, length)
        embeds = EMBEDS[start // 90, :length][None]
        out = decoder(inputs_embeds=embeds, position_ids=places, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        states.append(out.last_hidden_state)
    return states


@torch.inference_mode()
@pytest.mark.parametrize("axes", [None, 3, 4])
def test_positions_of_decoders_with_three_axes(tiny, axes):
    """One axis stands for all three; every pass uses what it is given."""
    model, _ = tiny("qwen2_vl")
    stock = _three_calls(model, axes)
    with reduce_tokens(model, NOTHING, spans=[SPAN]):
        ours = _three_calls(model, axes)
    for found, expected in zip(ours, stock, strict=True):
        torch.testing.assert_close(found, expected)


def _lora(model: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=2, target_modules=r".*language_model.*q_proj")).eval()


WRAPPERS = {
    "peft": (_lora, lambda outer, model, inputs: logits(outer, inputs)),
    "torch.compile": (torch.compile, lambda outer, model, inputs: logits(outer, inputs)),
    "DataParallel": (torch.nn.DataParallel, lambda outer, model, inputs: outer(**inputs)),
    "the model inside": (lambda model: model, lambda outer, model, inputs: model.model(**inputs)),
    "ids without a name": (
        lambda model: model,
        lambda outer, model, inputs: model(
            inputs["input_ids"], **{k: v for k, v in inputs.items() if k != "input_ids"}
        ),
    ),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_ids_are_found_wherever_a_prompt_enters(wrapper):
    from sttm_lmms.testing.tiny import tiny_model

    model, processor = tiny_model("llava_video", seed=1)
    if wrapper == "peft":
        pytest.importorskip("peft")
    wrap, call = WRAPPERS[wrapper]
    inputs = inputs_of(processor, turn(f"{LLAVA_SEES}What?"), videos=1)
    outer = wrap(model)
    with torch.inference_mode(), reduce_tokens(outer, HALF) as report:
        call(outer, model, inputs)
    assert (report.prefills, report.kept_tokens) == (1, report.visual_tokens // 2)


def test_a_wrapper_around_the_decoder_itself_is_not_taken_for_it(qwen2):
    wrapped = torch.compile(qwen2.model)
    with torch.inference_mode(), reduce_tokens(wrapped, HALF, spans=[SPAN]) as report:
        wrapped._orig_mod(inputs_embeds=EMBEDS[:1])
    assert report.kept_tokens < report.visual_tokens == 64


def test_embeddings_alone_are_refused_also_behind_a_call_with_ids(tiny):
    model, processor = tiny("llava_video")
    inputs = inputs_of(processor, turn(f"{LLAVA_SEES}What?"), videos=1)
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    with torch.inference_mode(), reduce_tokens(model, HALF):
        model.model.language_model(input_ids=inputs["input_ids"][:, :5])
        for call in (
            lambda: model.model.language_model(inputs_embeds=embeds),
            lambda: logits(model, {"input_ids": inputs["input_ids"], "inputs_embeds": embeds}),
        ):
            with pytest.raises(UnsupportedModelError, match="with input_ids and pixel values, or give reduce_tokens"):
                call()


@pytest.mark.parametrize(("family", "sees"), [("llava_video", LLAVA_SEES), ("qwen2_vl", QWEN_SEES)])
def test_a_static_cache_holds_text_and_no_reduced_video(tiny, family, sees):
    model, processor = tiny(family)
    text = inputs_of(processor, turn("Hello"))
    stock = logits(model, text, cache_implementation="static").sequences
    with reduce_tokens(model, HALF):
        assert logits(model, text, cache_implementation="static").sequences.equal(stock)
        with pytest.raises(UnsupportedModelError, match="use the default DynamicCache"):
            logits(model, inputs_of(processor, turn(f"{sees}What?"), videos=1), cache_implementation="static")


ROWS = {
    "the first of two": (EMBEDS, [0], [32, 64]),
    "the second of two": (EMBEDS, [1], [64, 32]),
    "both": (EMBEDS, [0, 1], [32, 32]),
    "beams of one": (EMBEDS[[0, 0, 0]], [0], [32, 32, 32]),
    "beams of two, of which one has a video": (EMBEDS[[0, 0, 1, 1]], [0], [32, 32, 64, 64]),
    "beams of two": (EMBEDS[[0, 0, 1, 1]], [0, 1], [32, 32, 32, 32]),
}


@torch.inference_mode()
@pytest.mark.parametrize("case", ROWS)
def test_spans_stay_in_their_rows(qwen2, case):
    """Rows that differ are prompts, rows that are equal are copies of one; each is what it is
    alone."""
    embeds, rows, lengths = ROWS[case]
    with reduce_tokens(qwen2, HALF, spans=[VideoSpan(5, (4, 4, 4), row) for row in rows]):
        found = qwen2(inputs_embeds=embeds).logits
    for row, length in enumerate(lengths):
        with reduce_tokens(qwen2, HALF if length == 32 else NOTHING, spans=[SPAN]):
            alone = qwen2(inputs_embeds=embeds[row : row + 1]).logits[0]
        torch.testing.assert_close(found[row, -len(alone) :], alone)


@torch.inference_mode()
def test_a_row_that_is_not_there(qwen2):
    with (
        reduce_tokens(qwen2, HALF, spans=[VideoSpan(5, (4, 4, 4), 2)]),
        pytest.raises(ValueError, match="row 2, but the batch has rows 0 to 1"),
    ):
        qwen2(inputs_embeds=EMBEDS)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("family", "first"), [("llava_video", 3), ("qwen2_vl", 2), ("qwen3_vl", 2), ("internvl", 2), ("internvl", 1)]
)
def test_a_video_spread_over_passes_is_refused(tiny, family, first):
    """As chunked prefills do; cut where the first part is a video of its own."""
    model, processor = tiny(family)
    text = turn(f"{QWEN_SEES if 'qwen' in family else LLAVA_SEES}What?")
    inputs = inputs_of(processor, text, videos=1)
    decoder, places = model.model.language_model, None
    if "qwen" in family:
        names = ("input_ids", "mm_token_type_ids", "video_grid_thw", "second_per_grid_ts")
        places = model.model.get_rope_index(**{name: inputs[name] for name in names if name in inputs})[0]
    with reduce_tokens(model, HALF) as report:
        model(**inputs)
    (event,) = report.events
    frame = event.grid[1] * event.grid[2]
    token = model.config.image_token_id if family == "internvl" else model.config.video_token_id
    cut = int((inputs["input_ids"][0] == token).nonzero()[first * frame - 1]) + 1

    def call(part: slice, cache: Any) -> Any:
        at = None if places is None else places[..., part]
        ids = inputs["input_ids"][:, part]
        return decoder(input_ids=ids, position_ids=at, past_key_values=cache, use_cache=True).past_key_values

    with reduce_tokens(model, HALF):
        cache = call(slice(None, cut), None)
        with pytest.raises(UnsupportedModelError, match="spread over several forward passes"):
            call(slice(cut, None), cache)


@torch.inference_mode()
def test_logits_of_places_that_may_be_gone_are_refused(tiny):
    model, processor = tiny("llava_video")
    inputs = inputs_of(processor, turn(f"{LLAVA_SEES}What?"), videos=1)
    last = torch.tensor([inputs["input_ids"].shape[1] - 1])
    with reduce_tokens(model, HALF):
        assert model(**inputs, logits_to_keep=2).logits.shape[1] == 2
        with pytest.raises(UnsupportedModelError, match="logits_to_keep names places"):
            model(**inputs, logits_to_keep=last)
        assert model(**inputs_of(processor, turn("Hello")), logits_to_keep=torch.tensor([1])).logits.shape[1] == 1
