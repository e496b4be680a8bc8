"""Qwen2.5-VL and all later families: the same tokens, positions and logits as the stock processor
and forward give."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from newer_families import CASES, NEWER, VIDEO, shown, stock_inputs, stock_runs, user
from PIL import Image
from transformers.video_utils import VideoMetadata

from sttm_lmms.decoder import find_decoder
from sttm_lmms.errors import CheckpointError, UnsupportedModelError, VideoError
from sttm_lmms.families import family_of, family_of_config, load_pretrained
from sttm_lmms.families.internvl import sample_middles
from sttm_lmms.families.qwen2_vl import mrope_positions
from sttm_lmms.families.smolvlm import sample_frames
from sttm_lmms.runtime.spans import locate_spans
from sttm_lmms.video import VideoSettings


def prepared_of(loaded, name, parts, visuals):
    family, model, processor = loaded(name, "hf")
    features = [family.vision_features(model, processor, visual) for visual in visuals]
    return family, model, processor, family.prepare(model, processor, user(parts), features)


@torch.no_grad()
def logits_of(model, prepared) -> torch.Tensor:
    rows, length = prepared.input_ids.shape
    added = prepared.deepstack.inputs(rows, length) if prepared.deepstack else {}
    hidden = find_decoder(model)(
        inputs_embeds=prepared.inputs_embeds, position_ids=prepared.position_ids, use_cache=False, **added
    )[0]
    return model.lm_head(hidden)[0]


def stock_positions(model, inputs) -> torch.Tensor | None:
    if not hasattr(model.model, "get_rope_index"):
        return None
    names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw", "second_per_grid_ts")
    return model.model.get_rope_index(**{name: inputs[name] for name in names if name in inputs})[0]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NEWER)
def test_tokens_positions_and_logits_of_the_stock_code(loaded, name, case):
    visuals = shown(name, CASES[case])
    _, model, processor, prepared = prepared_of(loaded, name, CASES[case], visuals)
    inputs = stock_inputs(processor, CASES[case], visuals)
    assert prepared.input_ids.tolist() == inputs["input_ids"].tolist()
    positions = stock_positions(model, inputs)
    if name == "qwen2_5_vl" and "video" in case:
        # transformers lets text overlap a video that reaches further in time than in space.
        _check_trained_positions(prepared, positions)
        positions = prepared.position_ids
    elif positions is not None:
        assert prepared.position_ids.equal(positions)
    if not stock_runs(name, case):
        with pytest.raises(ValueError, match="do not match"):
            model(**inputs)
        return
    with torch.no_grad():
        extra = {} if positions is None else {"position_ids": positions}
        expected = model(**{**inputs, **extra}).logits[0]
    torch.testing.assert_close(logits_of(model, prepared), expected, atol=2e-5, rtol=1e-4)


def _check_trained_positions(prepared, stock) -> None:
    """The same steps inside of each visual and each text; only where a text starts differs."""
    ours = prepared.position_ids
    jumps = (ours.diff(dim=-1) != stock.diff(dim=-1)).any(dim=0)[0].nonzero()[:, 0]
    ends = [span.end - 1 for span in prepared.spans]
    assert set(jumps.tolist()) <= set(ends)
    for end in ends:
        assert (ours[:, 0, end + 1] == ours[..., : end + 1].max() + 1).all()


@pytest.mark.parametrize("name", NEWER)
def test_spans_from_plain_inputs_are_those_of_the_prepared_prompt(loaded, name):
    for case, parts in CASES.items():
        visuals = shown(name, parts)
        family, model, _, prepared = prepared_of(loaded, name, parts, visuals)
        assert family_of_config(model.config).name == family.name
        found = family.locate_spans(model.config, prepared.input_ids, prepared.position_ids)
        assert found == list(prepared.spans), case
        assert len(found) == sum(part is VIDEO for part in parts)
        pad = processor_pad(model, name)
        for span in found:
            assert len(span.places()) == span.length
            assert {prepared.input_ids[0, place].item() for place in span.places()} == {pad}


def processor_pad(model, name) -> int:
    return model.config.video_token_id if name.startswith("qwen") else model.config.image_token_id


@pytest.mark.parametrize("name", ["qwen3_vl", "internvl"])
@pytest.mark.parametrize("frames", [2, 4, 24])
def test_many_frames_are_one_video(loaded, name, frames):
    """Numbers and timestamps of two digits, and as few frames as can be seen to be a video."""
    parts = CASES["video"]
    family, model, processor, prepared = prepared_of(loaded, name, parts, shown(name, parts, frames, fps=0.5))
    (span,) = prepared.spans
    assert span.grid[0] == len(span.pieces or [0]) == (frames // 2 if name == "qwen3_vl" else frames)
    assert family.locate_spans(model.config, prepared.input_ids, prepared.position_ids) == [span]
    between = [
        processor.tokenizer.decode(prepared.input_ids[0, start + length : following])
        for (start, length), (following, _) in zip(span.pieces or (), (span.pieces or ())[1:], strict=False)
    ]
    if name == "internvl":
        assert between == [f"</img>\nFrame{number}: <img>" for number in range(2, frames + 1)]
    else:
        assert between == [
            f"<|vision_end|><{(2 * 2 * pair + 1) / 2 / 0.5:.1f} seconds><|vision_start|>"
            for pair in range(1, frames // 2)
        ]


@pytest.mark.parametrize("frames", [2, 9, 11, 21])
def test_videos_side_by_side(loaded, frames):
    """A headline with the number of the first frame starts another video, also where one video ends
    with an 11."""
    for name in ("qwen3_vl", "internvl"):
        parts = CASES["two videos"]
        family, model, _, prepared = prepared_of(loaded, name, parts, shown(name, parts, frames))
        assert family.locate_spans(model.config, prepared.input_ids, prepared.position_ids) == list(prepared.spans)


def test_rows_of_a_batch_are_apart(loaded):
    for name in NEWER:
        parts = CASES["video"]
        family, model, _, prepared = prepared_of(loaded, name, parts, shown(name, parts))
        ids = prepared.input_ids.repeat(2, 1)
        positions = None if prepared.position_ids is None else prepared.position_ids.repeat(1, 2, 1)
        (span,) = prepared.spans
        assert family.locate_spans(model.config, ids, positions) == [span, replace(span, row=1)]


LABELS = {
    "{}{}{}": [],
    "Before: {}\nDuring: {}\nAfter: {}": [],
    "Image A: {}\nImage B: {}\nImage C: {}": [],
    "left: {}\nmiddle: {}\nright: {}": [],
    "(a) {} (b) {} (c) {}": [],
    "(1) {} (2) {} (3) {}": [],
    "1. {}\n2. {}\n3. {}": [],
    "2019: {}\n2020: {}\n2021: {}": [],
    "Year 2019: {}\nYear 2020: {}\nYear 2021: {}": [],
    "Day 1: {}\nDay 3: {}\nDay 5: {}": [],
    "Photo 3: {}\nPhoto 2: {}\nPhoto 1: {}": [],
    "Cat 1: {}\nDog 2: {}\nCow 3: {}": [],
    "Page 1 of 3: {}\nPage 2 of 3: {}\nPage 3 of 3: {}": [],
    "Frame1: {}\nFrame2: {}\nFrame3: {}": [3],
    "Look: Frame1: {}\nFrame2: {}\nAnd this: {}": [2],
    "Frame1: {}\nFrame2: {}\nFrame1: {}": [2],
    "Photo 1: {}\nPhoto 2: {}\nPhoto 3: {}": [3],  # nothing but spans= can tell these from frames
}


@pytest.mark.parametrize("text", LABELS)
def test_only_numbers_that_count_up_behind_the_same_word_are_frames(loaded, text):
    family, model, processor = loaded("internvl", "hf")
    tile = "<img>" + "<IMG_CONTEXT>" * model.config.image_seq_length + "</img>"
    ids = processor.tokenizer("user\n" + text.format(tile, tile, tile), return_tensors="pt")["input_ids"]
    assert [span.grid[0] for span in family.locate_spans(model.config, ids, None)] == LABELS[text]


def test_frames_behind_text_in_the_published_vocabulary(loaded):
    """There "Frame" behind a blank is another token than at the start of a line, and "(" behind one
    is no word."""
    family, model, _ = loaded("internvl", "hf")
    pad, start, end = model.config.image_token_id, 300, 301
    tile = [pad] * model.config.image_seq_length
    behind = [25, 220, start]
    frames = [10234, 25, 16321, 16, *behind, *tile, end, 198, 4369, 17, *behind, *tile, end, 198, 3838]
    photos = [872, 320, 16, 8, 220, start, *tile, end, 320, 17, 8, 220, start, *tile, end, 3838]
    (span,) = family.locate_spans(model.config, torch.tensor([frames]), None)
    assert span.grid[0] == 2
    assert family.locate_spans(model.config, torch.tensor([photos]), None) == []


def test_one_dimensional_positions_are_refused(loaded):
    for name in ("qwen2_5_vl", "qwen3_vl"):
        family, model, _, prepared = prepared_of(loaded, name, CASES["video"], shown(name, CASES["video"]))
        with pytest.raises(UnsupportedModelError, match="without 3-D"):
            family.locate_spans(model.config, prepared.input_ids, None)


@pytest.mark.parametrize("name", NEWER)
def test_prefix_does_not_depend_on_the_question(loaded, name):
    parts = [VIDEO, ""]
    visuals = shown(name, parts)
    prompts = [prepared_of(loaded, name, [VIDEO, text], visuals)[-1] for text in ("Why?", "\n\nWhat?", " 1. ", "W")]
    (shared,) = {prompt.prefix_length for prompt in prompts}
    assert shared > prompts[0].spans[0].end
    for prompt in prompts[1:]:
        assert prompt.input_ids[:, :shared].equal(prompts[0].input_ids[:, :shared])
        assert prompt.inputs_embeds[:, :shared].equal(prompts[0].inputs_embeds[:, :shared])


# SmolVLM's processor takes a template of its own where there is a video.
@pytest.mark.parametrize("name", [name for name in NEWER if name != "smolvlm"])
def test_a_template_without_markers_is_an_error(loaded, name):
    family, model, processor = loaded(name, "hf")
    features = [family.vision_features(model, processor, visual) for visual in shown(name, [VIDEO])]
    template = processor.chat_template
    try:
        processor.chat_template = "{% for message in messages %}{{ message['role'] }}{% endfor %}"
        with pytest.raises(ValueError, match="holds 0 of the placeholders"):
            family.prepare(model, processor, user([VIDEO, "Why?"]), features)
    finally:
        processor.chat_template = template


@pytest.mark.parametrize("name", NEWER)
def test_frames_as_file_list_and_tensor(loaded, mp4, name):
    family, model, processor = loaded(name, "hf")
    settings = VideoSettings(max_frames=6, fps=2.0, min_pixels=32 * 32, max_pixels=96 * 96)
    video = family.read_video(mp4, settings)
    frames = video.frames
    features = family.vision_features(model, processor, video)
    again = [
        family.vision_features(model, processor, family.read_video(source, settings))
        for source in (
            [Image.fromarray(frame) for frame in frames],
            torch.from_numpy(frames),
            torch.from_numpy(frames.transpose(0, 3, 1, 2).copy()),
            frames,
        )
    ]
    for other in again:
        assert other.tensor.equal(features.tensor)
    assert again[0].metadata["video_sample_fps"] == 2.0


def test_what_are_no_frames(loaded):
    family, _, _ = loaded("internvl", "hf")
    mixed = [Image.new("RGB", (8, 8)), Image.new("RGB", (8, 9))]
    for source, match in (
        (mixed, "the images have 2 sizes"),
        ([], "list of shape"),
        (torch.zeros(3, 8, 8, 3), "float32"),
        (np.zeros((8, 8, 3), np.uint8), r"\(8, 8, 3\)"),
    ):
        with pytest.raises(VideoError, match=match):
            family.read_video(source, VideoSettings())


def test_another_architecture_is_refused_with_those_that_are_supported(tmp_path):
    with pytest.raises(UnsupportedModelError, match=r"'fuyu' is not supported: .*glm46v"):
        locate_spans(SimpleNamespace(model_type="fuyu"), torch.zeros(1, 4, dtype=torch.long), None)
    with pytest.raises(UnsupportedModelError, match=r"Fuyu is not supported; supported classes: .*Qwen3_5"):
        family_of(type("Fuyu", (torch.nn.Module,), {})())
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Fuyu"]}))
    with pytest.raises(CheckpointError, match=r"'Fuyu'.* are not supported; supported: .*Qwen3_5"):
        load_pretrained(tmp_path)


def test_positions_in_time():
    positions = mrope_positions(10, [(1, (3, 1, 2))], [4.5])[:, 0]
    assert positions.tolist() == [
        [0, 1, 1, 5, 5, 10, 10, 11, 12, 13],
        [0, 1, 1, 1, 1, 1, 1, 11, 12, 13],
        [0, 1, 2, 1, 2, 1, 2, 11, 12, 13],
    ]


def test_smolvlm_samples_as_its_processor(loaded):
    _, _, processor = loaded("smolvlm", "hf")
    for total, fps, most, rate in (
        (30, 10.0, 64, 1),
        (250, 25.0, 4, 1),
        (3000, 29.97, 64, 1),
        (90, 30.0, 8, 2),
        (1, 25, 4, 1),
    ):
        facts = VideoMetadata(total_num_frames=total, fps=fps, duration=total / fps)
        expected = processor.video_processor.sample_frames(facts, num_frames=most, fps=rate)
        settings = VideoSettings(max_frames=most, fps=float(rate))
        assert sample_frames(total, fps, total / fps, settings) == expected.tolist()


TIMES = {
    "a 0:00:02 [H:MM:SS] video.\n\nFrame from 00:00:{}\nFrame from 00:01:{}\n\nWhy?": [2],
    "a 1:40:00 [H:MM:SS] video.\n\nFrame from 99:59:{}\nFrame from 100:00:{}\n\nWhy?": [2],
    "a 0:00:01 [H:MM:SS] video.\n\nFrame from 00:00:{}\n\n": [1],
    "a 0:00:01 [H:MM:SS] video.\n\nFrame from 00:00:{}\n\n" * 2: [1, 1],
    "a 0:00:01 [H:MM:SS] video.\n\nFrame from 00:00:{}\n\nand {}": [1],
    "{}{}": [],
    "At 10:15: {}\nAt 10:16: {}": [],
    "Photo 1: {}\nPhoto 2: {}": [],
}


@pytest.mark.parametrize("text", TIMES)
def test_only_frames_with_times_behind_a_duration_are_a_smolvlm_video(loaded, text):
    family, model, processor = loaded("smolvlm", "hf")
    tile = "<fake_token_around_image><global-img>" + "<image>" * 16 + "<fake_token_around_image>"
    ids = processor.tokenizer("User: " + text.replace("{}", tile), return_tensors="pt")["input_ids"]
    assert [span.grid[0] for span in family.locate_spans(model.config, ids, None)] == TIMES[text]


def test_middles_of_equal_parts():
    assert sample_middles(100, 4) == [12, 37, 62, 87]
    assert sample_middles(3, 3) == [0, 1, 2]
    assert sample_middles(7, 1) == [3]


@pytest.mark.parametrize("name", NEWER)
def test_shape_is_known_before_anything_is_decoded(loaded, mp4, name):
    from sttm_lmms.video import probe

    family, model, processor = loaded(name, "hf")
    settings = VideoSettings(max_frames=6, fps=2.0, min_pixels=32 * 32, max_pixels=96 * 96)
    features = family.vision_features(model, processor, family.read_video(mp4, settings))
    assert family.feature_shape(model.config, probe(mp4), settings) == tuple(features.tensor.shape)
