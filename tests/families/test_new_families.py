"""Qwen2.5-VL and all later families reduced: against stock generate, and against a decoder written
out."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from newer_families import CASES, VIDEO, batch_inputs, generated, shown, stock_inputs, stock_runs, user
from PIL import Image
from slow_decoder_of_pieces import Prompt, prompt_of, slow_logits

from sttm_lmms import STTMConfig, encode_video, reduce_tokens
from sttm_lmms.decoder import find_decoder
from sttm_lmms.runtime import Engine, GenerationSettings, Request
from sttm_lmms.types import VideoSpan
from sttm_lmms.video import VideoSettings

LAYERS = [0, 1, 2, 3]
WITH_VIDEO = [case for case in CASES if "video" in case]
STEPS = 20
FAMILIES = ["qwen2_5_vl", "qwen3_vl", "qwen3_5", "glm4v", "internvl", "smolvlm"]
families = pytest.mark.parametrize("name", FAMILIES)


def merging(layer: int, **settings) -> STTMConfig:
    return STTMConfig(**{"budget": 0.5, "start_layer": layer, "root_level": 0, **settings})


def standing(video, moved: int = 2):
    """The same frame again and again but for the last ``moved``, so that all tokens of most frames
    merge away."""
    frames = video.frames.copy()
    frames[: len(frames) - moved] = frames[0]
    return replace(video, frames=frames)


def plain_inputs(prepared) -> dict:
    """Of generate, without any ids."""
    inputs = {"inputs_embeds": prepared.inputs_embeds, "attention_mask": torch.ones_like(prepared.input_ids)}
    return inputs if prepared.position_ids is None else {**inputs, "position_ids": prepared.position_ids}


@pytest.mark.parametrize(
    ("name", "case"), [(name, case) for name in FAMILIES for case in WITH_VIDEO if stock_runs(name, case)]
)
@pytest.mark.parametrize("layer", [0, 1, 3])
def test_merging_nothing_is_stock_generate_bit_for_bit(loaded, name, case, layer):
    _, model, processor = loaded(name, "hf")
    inputs = stock_inputs(processor, CASES[case], shown(name, CASES[case]))
    ids, logits = generated(model, inputs, 4)
    with reduce_tokens(model, STTMConfig(2.0, 0.0, start_layer=layer)) as report:
        same_ids, same_logits = generated(model, inputs, 4)
    assert len(report.events) == sum(
        part is VIDEO for part in CASES[case]
    )  # a family that finds no video would pass the rest
    assert all(event.after == event.before for event in report.events)
    assert same_ids.equal(ids)
    assert same_logits.equal(logits)


@families
def test_text_that_overlaps_a_long_video_decodes_like_stock(loaded, name):
    """transformers counts Qwen2.5-VL's text, and the answer behind it, on from the video's rows and
    columns."""
    _, model, processor = loaded(name, "hf")
    inputs = stock_inputs(processor, [VIDEO, "Why?"], shown(name, [VIDEO], frames=12, fps=0.25))
    _, logits = generated(model, inputs, 6)
    with reduce_tokens(model, STTMConfig(2.0, 0.0)):
        _, same = generated(model, inputs, 6)
    assert same.equal(logits)


@families
@pytest.mark.parametrize("case", WITH_VIDEO)
@pytest.mark.parametrize("layer", LAYERS)
def test_reduced_prefill_and_decode_steps_are_the_written_out_decoder(loaded, name, case, layer):
    family, model, processor = loaded(name, "hf")
    visuals = shown(name, CASES[case])
    features = [family.vision_features(model, processor, visual) for visual in visuals]
    prepared = family.prepare(model, processor, user(CASES[case]), features)
    config = merging(layer)
    with reduce_tokens(model, config, spans=prepared.spans) as report, _deepstack(model, prepared):
        ids, logits = generated(model, plain_inputs(prepared), STEPS + 1)
    expected, left = slow_logits(model, prompt_of(prepared), config, ids[0, :STEPS].tolist())
    torch.testing.assert_close(logits[:, 0], expected, atol=2e-5, rtol=1e-4)
    removed = sum(event.before - event.after for event in report.events)
    assert removed > 0
    assert len(left) == prepared.input_ids.shape[1] - removed


@contextmanager
def _deepstack(model, prepared):
    """What the decoder adds, for a generate that is given embeddings; as a stock forward would hand
    it over."""

    def add(_, args, kwargs):
        if prepared.deepstack and kwargs["inputs_embeds"].shape[1] == prepared.input_ids.shape[1]:
            return args, {**kwargs, **prepared.deepstack.inputs(*kwargs["inputs_embeds"].shape[:2])}
        return None

    handle = find_decoder(model).register_forward_pre_hook(add, with_kwargs=True, prepend=True)
    try:
        yield
    finally:
        handle.remove()


@families
@pytest.mark.parametrize("layer", LAYERS)
def test_plain_generate_reduces_what_a_prepared_prompt_does(loaded, name, layer):
    """The stock path finds its videos itself; positions are the stock ones."""
    family, model, processor = loaded(name, "hf")
    parts = CASES["image and video" if stock_runs(name, "image and video") else "two videos"]
    visuals = shown(name, parts)
    inputs = stock_inputs(processor, parts, visuals)
    with reduce_tokens(model, merging(layer)) as report:
        ids, logits = generated(model, inputs, 5)
    features = [family.vision_features(model, processor, visual) for visual in visuals]
    prepared = family.prepare(model, processor, user(parts), features)
    if hasattr(model.model, "get_rope_index"):
        names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw", "second_per_grid_ts")
        positions, _ = model.model.get_rope_index(**{key: inputs[key] for key in names if key in inputs})
        prepared = replace(prepared, position_ids=positions)
    expected, _ = slow_logits(model, prompt_of(prepared), merging(layer), ids[0, :4].tolist())
    torch.testing.assert_close(logits[:, 0], expected, atol=2e-5, rtol=1e-4)
    report.check_reduced()
    assert [event.grid for event in report.events] == [span.grid for span in prepared.spans]


@families
@pytest.mark.parametrize("layer", LAYERS)
def test_a_padded_batch_gives_the_rows_of_single_prompts(loaded, name, layer):
    _, model, processor = loaded(name, "hf")
    first, second = shown(name, [VIDEO]), [standing(video) for video in shown(name, [VIDEO])]
    prompts = [([VIDEO, "What moves, and where does it go?"], first), ([VIDEO, "Why?"], second)]
    config = STTMConfig(0.9, 0.9, root_level=0, start_layer=layer)
    with reduce_tokens(model, config) as alone:
        single = [generated(model, batch_inputs(processor, [prompt]), 5) for prompt in prompts]
    with reduce_tokens(model, config) as report:
        ids, logits = generated(model, batch_inputs(processor, prompts), 5)
    assert [e.after for e in report.events] == [e.after for e in alone.events]
    assert report.events[0].after != report.events[1].after
    assert ids.equal(torch.cat([one for one, _ in single]))
    torch.testing.assert_close(logits, torch.cat([one for _, one in single], dim=1), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["qwen3_vl_moe", "qwen3_5_moe", "glm4v_moe", "glm46v"])
@pytest.mark.parametrize("layer", [1, 3])
def test_mixtures_of_experts_need_nothing_else(loaded, name, layer):
    test_merging_nothing_is_stock_generate_bit_for_bit(loaded, name, "two videos", layer)
    test_reduced_prefill_and_decode_steps_are_the_written_out_decoder(loaded, name, "two videos", layer)
    test_plain_generate_reduces_what_a_prepared_prompt_does(loaded, name, layer)


@families
@pytest.mark.parametrize("layer", [0, 2])
def test_frames_that_empty_keep_their_text(loaded, name, layer):
    family, model, processor = loaded(name, "hf")
    visuals = [standing(video) for video in shown(name, [VIDEO], frames=8)]
    features = [family.vision_features(model, processor, visual) for visual in visuals]
    prepared = family.prepare(model, processor, user([VIDEO, "Why?"]), features)
    config = STTMConfig(2.0, 0.95, start_layer=layer)
    with reduce_tokens(model, config, spans=prepared.spans) as report, _deepstack(model, prepared):
        ids, logits = generated(model, plain_inputs(prepared), 4)
    (event,) = report.events
    in_frame = event.merged.boxes[:, 0].bincount(minlength=event.grid[0]).tolist()
    if layer == 0:  # deeper, the text around a frame makes even equal frames different
        assert in_frame.count(0) >= 2
    expected, left = slow_logits(model, prompt_of(prepared), config, ids[0, :3].tolist())
    torch.testing.assert_close(logits[:, 0], expected, atol=2e-5, rtol=1e-4)
    places = {place for span in prepared.spans for place in span.places()}
    text = [place for place in range(prepared.input_ids.shape[1]) if place not in places]
    assert set(text) <= set(left)


@families
@pytest.mark.parametrize("layer", [1, 3])
def test_eager_is_sdpa(loaded, name, layer):
    _, model, processor = loaded(name, "hf")
    inputs = stock_inputs(processor, CASES["two videos"], shown(name, CASES["two videos"]))
    found = []
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation(attention)
        with reduce_tokens(model, merging(layer)):
            found.append(generated(model, inputs, 4)[1])
    torch.testing.assert_close(*found, atol=2e-5, rtol=1e-4)


@families
@pytest.mark.parametrize("config", [None, merging(1), merging(3)])
def test_a_shared_prefix_changes_no_answer(loaded, mp4, name, config):
    _, model, processor = loaded(name, "hf")
    image = Image.fromarray(np.full((40, 60, 3), 99, np.uint8))
    settings = VideoSettings(max_frames=6, fps=2.0, min_pixels=32 * 32, max_pixels=160 * 160)
    requests = []
    for question in ("Why?", "\nWhat moves, and where?", "How many?"):
        content = [
            {"type": "image", "image": image},
            {"type": "video", "video": mp4},
            {"type": "text", "text": question},
        ]
        requests.append(Request([{"role": "user", "content": content}], GenerationSettings(max_new_tokens=8)))
    engines = [Engine(model, processor, config, video=settings, reuse=reuse) for reuse in ("prefix", "none")]
    shared, alone = (engine.generate(requests) for engine in engines)
    assert [a.text for a in shared] == [a.text for a in alone]
    assert [a.kept_tokens for a in shared] == [a.kept_tokens for a in alone]
    assert all(a.reduced == (config is not None) for a in shared)
    assert [engine.counters.prefills for engine in engines] == [1, 3]
    batched = Engine(model, processor, config, video=settings).generate(requests, batch_size=3)
    assert [a.text for a in batched] == [a.text for a in alone]
    scores = [
        [score.logprob for score in engine.loglikelihood([(request, "blue") for request in requests])]
        for engine in engines
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)


@families
def test_encode_video_takes_a_file_images_and_tensors(loaded, mp4, name):
    family, model, processor = loaded(name, "hf")
    settings = VideoSettings(max_frames=6, fps=2.0, min_pixels=32 * 32, max_pixels=160 * 160)
    frames = family.read_video(mp4, settings).frames
    sources = [[Image.fromarray(frame) for frame in frames], torch.from_numpy(frames), frames]
    prefixes = [encode_video(model, processor, source, merging(3), settings=settings) for source in sources]
    answers = {prefix.ask("What moves?", max_new_tokens=8) for prefix in prefixes}
    assert len(answers) == 1
    of_file = encode_video(model, processor, mp4, merging(3), settings=settings)
    assert {prefix.visual_tokens for prefix in prefixes} == {of_file.visual_tokens}
    assert all(0 < prefix.kept_tokens < prefix.visual_tokens for prefix in [*prefixes, of_file])


@pytest.mark.parametrize(
    ("name", "layout"), [("llava_video", "original"), ("llava_onevision", "hf"), ("qwen2_vl", "hf")]
)
def test_encode_video_takes_images_for_the_older_families_too(loaded, name, layout):
    _, model, processor = loaded(name, layout)
    frames = [Image.fromarray(frame) for frame in shown("qwen2_5_vl", [VIDEO])[0].frames]
    prefix = encode_video(model, processor, frames, merging(2), settings=VideoSettings(max_pixels=160 * 160))
    assert 0 < prefix.kept_tokens < prefix.visual_tokens
    assert prefix.ask("What moves?", max_new_tokens=3) == prefix.ask("What moves?", max_new_tokens=3)


def test_spans_of_any_shape_can_be_given(loaded):
    """Pieces that are no frames: a decoder only needs to know where the grid's tokens stand."""
    _, model, _ = loaded("internvl", "hf")
    torch.manual_seed(0)
    embeds = torch.randn(1, 40, 64)
    span = VideoSpan(3, (2, 3, 4), pieces=((3, 5), (10, 1), (20, 18)))
    config = merging(1)
    inputs = {"inputs_embeds": embeds, "attention_mask": torch.ones(1, 40, dtype=torch.long)}
    with reduce_tokens(model, config, spans=[span]) as report:
        ids, logits = generated(model, inputs, 3)
    expected, _ = slow_logits(model, Prompt(embeds[0], torch.arange(40), (span,), []), config, ids[0, :2].tolist())
    torch.testing.assert_close(logits[:, 0], expected, atol=2e-5, rtol=1e-4)
    report.check_reduced()
