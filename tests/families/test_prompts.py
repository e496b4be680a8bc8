"""The prompts as strings: what the checkpoints were trained with, and what is shared by all
questions."""

from __future__ import annotations

from collections import Counter
from functools import partial

import pytest
from family_helpers import CHECKPOINTS, clip, moving_frames
from newer_families import NEWER, SIZES
from PIL import Image

from sttm_lmms.errors import UnsupportedModelError
from sttm_lmms.families.assemble import as_plain_text, common_prefix
from sttm_lmms.families.llava import chatml_prompt, time_instruction
from sttm_lmms.families.template import control_tokens

SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
VIDEO = {"type": "video", "video": "clip.mp4"}
IMAGE = {"type": "image"}


def text(value: str) -> dict:
    return {"type": "text", "text": value}


def user(*parts: dict) -> dict:
    return {"role": "user", "content": list(parts)}


def show(segments) -> str:
    return "".join(piece if isinstance(piece, str) else f"<{piece}>" for piece in segments)


METADATA = {"video_time": 6.0, "num_frames": 3, "frame_time": [0.0, 2.5, 5.917]}
SENTENCE = (
    "The video lasts for 6.00 seconds, and 3 frames are uniformly sampled from it. These frames are located at "
    "0.00s,2.50s,5.92s. Please answer the following questions related to this video."
)


def test_time_instruction():
    assert time_instruction(METADATA) == SENTENCE
    assert time_instruction({**METADATA, "frame_time": "0.00s,2.50s,5.92s"}) == SENTENCE


@pytest.fixture
def render(loaded):
    """``render(messages, instructions) -> segments`` of LLaVA's prompts."""
    return partial(chatml_prompt, loaded("llava_onevision")[2])


def test_video_question(render):
    assert show(render([user(VIDEO, text("Why?"))], {0: SENTENCE})) == (
        f"{SYSTEM}<|im_start|>user\n<0>\n{SENTENCE}\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert show(render([user(VIDEO, text("Why?"))])) == (
        f"{SYSTEM}<|im_start|>user\n<0>\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([user(text("Hi."))], f"{SYSTEM}<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n"),
        (
            [{"role": "user", "content": "Hi."}],
            f"{SYSTEM}<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            [{"role": "system", "content": "Be brief."}, user(text("Look:"), VIDEO, text("Why?"), text(" How?"))],
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nLook:\n<0>\nWhy? How?<|im_end|>\n"
            "<|im_start|>assistant\n",
        ),
        (
            [user(IMAGE, IMAGE, text("Same?"))],
            f"{SYSTEM}<|im_start|>user\n<0> <1>\nSame?<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            [user(VIDEO, text("A?")), {"role": "assistant", "content": "Yes."}, user(text("B?"))],
            f"{SYSTEM}<|im_start|>user\n<0>\nA?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n"
            "<|im_start|>user\nB?<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            [user(VIDEO, text("A?")), {"role": "assistant", "content": "The answer is"}],
            f"{SYSTEM}<|im_start|>user\n<0>\nA?<|im_end|>\n<|im_start|>assistant\nThe answer is",
        ),
    ],
)
def test_layouts(render, messages, expected):
    assert show(render(messages)) == expected


def test_each_video_has_its_own_times(render):
    times = {0: SENTENCE, 1: "Second."}
    assert f"<0>\n{SENTENCE}\n<1>\nSecond.\nWhich?" in show(render([user(VIDEO, VIDEO, text("Which?"))], times))


def test_chat_template_of_the_processor_is_the_same(loaded, render):
    _, _, processor = loaded("llava_onevision")
    for messages in (
        [user(VIDEO, text("Why?"))],
        [user(IMAGE, IMAGE, text("Same?"), text(" Or not?"))],
        [{"role": "system", "content": "Be brief."}, user(text("Look:"), VIDEO)],
        [user(VIDEO, text("A?")), {"role": "assistant", "content": "Yes."}, user(text("B?"))],
    ):
        kinds = [part["type"] for m in messages if not isinstance(m["content"], str) for part in m["content"]]
        names = [f"<{kind}>" for kind in kinds if kind != "text"]
        ours = "".join(piece if isinstance(piece, str) else names[piece] for piece in render(messages))
        assert processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == ours


def test_audio_is_refused(render):
    with pytest.raises(UnsupportedModelError, match="'audio' is not supported; supported: text, image, video"):
        render([user({"type": "audio"})])


@pytest.mark.parametrize(("name", "layout"), CHECKPOINTS)
def test_prompt_in_tokens(loaded, name, layout):
    family, model, processor = loaded(name, layout)
    features = [family.vision_features(model, processor, clip())]
    newline = "no_token" if name != "qwen2_vl" else None
    prepared = family.prepare(model, processor, [user(VIDEO, text("Why?"))], features, newline=newline)
    (span,) = prepared.spans
    ids = prepared.input_ids[0].tolist()
    assert set(ids[span.start : span.end]) == {model.config.video_token_id}
    assert span.length == prepared.visual_tokens == ids.count(model.config.video_token_id)
    before, after = processor.tokenizer.decode(ids[: span.start]), processor.tokenizer.decode(ids[span.end :])
    end = "Why?<|im_end|>\n<|im_start|>assistant\n"
    if name == "qwen2_vl":
        assert before == f"{SYSTEM}<|im_start|>user\n<|vision_start|>"
        assert after == f"<|vision_end|>{end}"
    else:
        times = time_instruction(features[0].metadata)
        assert before == f"{SYSTEM}<|im_start|>user\n"
        assert after == (f"\n{times}\n{end}" if name == "llava_video" else f"\n{end}")


@pytest.mark.parametrize(("name", "layout"), CHECKPOINTS)
def test_prefix_is_shared_by_all_questions(loaded, name, layout):
    family, model, processor = loaded(name, layout)
    features = [family.vision_features(model, processor, clip())]
    prompts = [
        family.prepare(model, processor, [user(VIDEO, text(question))], features)
        for question in ("Why?", "\n\nWhat?", " 1. \n", "<|im_end|>", "W", "")
    ]
    lengths = {p.prefix_length for p in prompts}
    assert len(lengths) == 1
    shared = lengths.pop()
    first = prompts[0]
    last_visual = int((first.input_ids[0] == model.config.video_token_id).nonzero()[-1])
    assert shared > last_visual
    for prompt in prompts[1:]:
        assert common_prefix(first.input_ids[0].tolist(), prompt.input_ids[0].tolist()) >= shared
        assert prompt.inputs_embeds[:, :shared].equal(first.inputs_embeds[:, :shared])
        if prompt.position_ids is not None:
            assert prompt.position_ids[..., :shared].equal(first.position_ids[..., :shared])
    if name == "llava_video":
        assert processor.tokenizer.decode(first.input_ids[0, :shared]).endswith("related to this video.")


def test_text_only(loaded):
    for name, layout in CHECKPOINTS:
        family, model, processor = loaded(name, layout)
        prepared = family.prepare(model, processor, [user(text("Hi."))], [])
        assert (prepared.spans, prepared.prefix_length, prepared.visual_tokens) == ((), 0, 0)
        decoded = processor.tokenizer.decode(prepared.input_ids[0])
        assert decoded == f"{SYSTEM}<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n"


def test_turns_in_tokens(loaded):
    turns = [
        {"role": "system", "content": "Be brief."},
        user(VIDEO, text("A?")),
        {"role": "assistant", "content": "Yes."},
        user(text("B?")),
        {"role": "assistant", "content": "The answer is"},
    ]
    for name, layout in CHECKPOINTS:
        family, model, processor = loaded(name, layout)
        features = [family.vision_features(model, processor, clip())]
        prepared = family.prepare(model, processor, turns, features)
        decoded = processor.tokenizer.decode(prepared.input_ids[0])
        assert decoded.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
        assert decoded.endswith(
            "A?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n<|im_start|>user\nB?<|im_end|>\n"
            "<|im_start|>assistant\nThe answer is"
        )


def test_visuals_and_features_must_agree(loaded):
    for name in ("llava_video", "qwen2_vl"):
        family, model, processor = loaded(name, "hf")
        with pytest.raises(ValueError, match=r"hold the visuals \['video'\], but features were given for \[\]"):
            family.prepare(model, processor, [user(VIDEO)], [])


CONTROL = "<|video_pad|> <|image_pad|> <video> <image> <IMG_CONTEXT> <img></img> <|vision_start|><|vision_end|> "
CONTROL += "<|im_start|>user <|im_end|> <|endoftext|>"


@pytest.mark.parametrize(("name", "layout"), [*CHECKPOINTS, *((name, "hf") for name in NEWER)])
def test_special_tokens_that_a_text_spells_out_are_text(loaded, name, layout):
    """In system prompts, questions, options and earlier turns; what the prompt is built of stays as
    it is."""
    family, model, processor = loaded(name, layout)
    height, width = SIZES.get(name, (84, 112))
    shows = clip(6, height, width), Image.fromarray(moving_frames(1, height, width)[0])
    features = [family.vision_features(model, processor, visual) for visual in shows]
    special = {id for id, token in processor.tokenizer.added_tokens_decoder.items() if token.special}
    prompts = []
    for said in (CONTROL, "nothing"):
        turns = [
            {"role": "system", "content": f"Be brief about {said}."},
            user(VIDEO, text(f"What does {said} say?"), text(f"\nA. {said}\nB. no")),
            {"role": "assistant", "content": said},
            user(IMAGE, text(f"{said}")),
            {"role": "assistant", "content": f"It is {said}"},
        ]
        prompts.append(family.prepare(model, processor, turns, features))
    named, plain = prompts
    assert processor.tokenizer.decode(named.input_ids[0]).count(CONTROL) == 6
    counted, expected = (Counter(id for id in p.input_ids[0].tolist() if id in special) for p in prompts)
    assert counted == expected
    assert named.visual_tokens == plain.visual_tokens
    assert [span.grid for span in named.spans] == [span.grid for span in plain.spans]


def test_marks_for_grounding_stay_special_and_broken_text_is_mended(loaded):
    _, _, processor = loaded("qwen2_vl", "hf")
    assert "<|box_start|>" not in control_tokens(processor)
    assert as_plain_text("a \ud83d b \ud83d\ude00 \ufdd0c", ()) == "a \ufffd b \U0001f600 c"
