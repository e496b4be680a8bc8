"""Several videos and images in one prompt, in every family: with and without reuse, in batches, and
in the inputs of stock generate. Images are never reduced."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from sttm_lmms import STTMConfig
from sttm_lmms.families import FAMILIES, family_of
from sttm_lmms.runtime import Engine, GenerationSettings, Request, TokenReducer
from sttm_lmms.video import VideoSettings

every_family = pytest.mark.parametrize("name", FAMILIES)
SETTINGS = VideoSettings(max_frames=4, max_pixels=128 * 128)
CONFIG = STTMConfig(budget=0.5, root_level=0, start_layer=1)
ORDERS = ("iviv", "vii")


def content(order: str, videos, text: str) -> list[dict]:
    """``i`` is an image and ``v`` a video, each another one; words stand between them."""
    parts, clips = [], iter(videos)
    for number, kind in enumerate(order):
        if kind == "v":
            parts.append({"type": "video", "video": str(next(clips))})
        else:
            pixels = np.random.default_rng(number).integers(0, 256, (48, 64, 3), np.uint8)
            parts.append({"type": "image", "image": Image.fromarray(pixels)})
        parts.append({"type": "text", "text": f" is {number}, "})
    return [*parts, {"type": "text", "text": text}]


def asking(order: str, videos, text: str) -> Request:
    return Request([{"role": "user", "content": content(order, videos, text)}], GenerationSettings(max_new_tokens=5))


@every_family
def test_answers_do_not_depend_on_what_is_shared(tiny, videos, name):
    model, processor = tiny(name)
    requests = [asking(order, videos, text) for order in ORDERS for text in ("Which?", "What moves, and where?")]
    alone = Engine(model, processor, CONFIG, video=SETTINGS, reuse="none").generate(requests)
    assert all(answer.reduced for answer in alone)
    for reuse, batch_size in (("prefix", 1), ("prefix", 3)):
        found = Engine(model, processor, CONFIG, video=SETTINGS, reuse=reuse).generate(requests, batch_size=batch_size)
        assert [answer.text for answer in found] == [answer.text for answer in alone]
        assert [answer.kept_tokens for answer in found] == [answer.kept_tokens for answer in alone]


@every_family
@pytest.mark.parametrize("order", ORDERS)
def test_images_keep_all_their_tokens(tiny, videos, name, order):
    model, processor = tiny(name)
    family = family_of(model) if not name.startswith("llava") else FAMILIES[name]
    features, clips = [], iter(videos)
    for part in content(order, videos, "Which?"):
        if part["type"] == "video":
            features.append(family.vision_features(model, processor, family.read_video(next(clips), SETTINGS)))
        elif part["type"] == "image":
            features.append(family.vision_features(model, processor, part["image"]))
    messages = [{"role": "user", "content": content(order, videos, "Which?")}]
    newline = "no_token" if family.newlines else None
    prepared = family.prepare(model, processor, messages, features, newline=newline)
    assert len(prepared.spans) == order.count("v")
    inputs = {"inputs_embeds": prepared.inputs_embeds, "use_cache": True}
    if prepared.position_ids is not None:
        inputs["position_ids"] = prepared.position_ids
    left: list[torch.Tensor] = []  # what reaches layer 1
    decoder = family.decoder(model)
    handle = decoder.layers[1].register_forward_pre_hook(
        lambda _, args, kwargs: left.append(args[0] if args else kwargs["hidden_states"]),
        with_kwargs=True,
    )
    reducer = TokenReducer(model, CONFIG)
    try:
        with torch.no_grad(), reducer:
            reducer.expect(prepared.spans, unpadded=True, deepstack=prepared.deepstack)
            decoder(**inputs)
    finally:
        handle.remove()
    removed = sum(event.before - event.after for event in reducer.report.events)
    assert [event.grid for event in reducer.report.events] == [span.grid for span in prepared.spans]
    assert all(event.after < event.before for event in reducer.report.events)
    assert left[0].shape[1] == prepared.input_ids.shape[1] - removed
