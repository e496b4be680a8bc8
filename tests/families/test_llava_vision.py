"""LLaVA: the same visual tokens as the plain transformers API, newline layouts, images, several
videos."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from family_helpers import clip, last_logits, moving_frames
from PIL import Image

from sttm_lmms.families.llava import newline_layout
from sttm_lmms.types import VisionFeatures
from sttm_lmms.video import VideoSettings

VIDEO, IMAGE = {"type": "video"}, {"type": "image"}


def user(*parts) -> list:
    return [{"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}]


def picture(height: int = 80, width: int = 140) -> Image.Image:
    return Image.fromarray(moving_frames(1, height, width)[0])


@torch.no_grad()
def plain_logits(model, processor, messages, **visuals) -> torch.Tensor:
    """What the stock processor and the stock forward make of the same conversation."""
    prompt = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = processor(text=[prompt], return_tensors="pt", **visuals)
    return model(**inputs, logits_to_keep=1).logits[0, -1]


def test_newline_layouts():
    pooled = torch.arange(2 * 2 * 3, dtype=torch.float32).reshape(2, 2, 3, 1) + 1
    newline = torch.zeros(1)
    rows = {mode: newline_layout(pooled, newline, mode)[:, 0].tolist() for mode in ("grid", "frame", "one_token")}
    assert rows["grid"] == [1, 2, 3, 0, 4, 5, 6, 0, 7, 8, 9, 0, 10, 11, 12, 0]
    assert rows["frame"] == [1, 2, 3, 4, 5, 6, 0, 7, 8, 9, 10, 11, 12, 0]
    assert rows["one_token"] == [*range(1, 13), 0]
    assert newline_layout(pooled, newline, "no_token").equal(pooled.reshape(-1, 1))


@pytest.mark.parametrize("layout", ["original", "hf"])
def test_video_as_the_plain_api_sees_it(loaded, layout):
    family, model, processor = loaded("llava_onevision", layout)
    video = clip(count=20)  # more than one chunk
    features = family.vision_features(model, processor, video)
    assert features.tensor.shape == (20, 169, 32)
    prepared = family.prepare(model, processor, user(VIDEO, "Why?"), [features])
    assert prepared.visual_tokens == 20 * 49 + 1
    plain = plain_logits(model, processor, user(VIDEO, "Why?"), videos=[video.frames])
    torch.testing.assert_close(last_logits(model, prepared), plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(80, 140), (54, 54), (200, 60), (170, 170)])
def test_one_image_as_the_plain_api_sees_it(loaded, size):
    family, model, processor = loaded("llava_onevision")
    image = picture(*size)
    features = family.vision_features(model, processor, image)
    prepared = family.prepare(model, processor, user(IMAGE, "Why?"), [features])
    assert features.metadata == {"image_size": list(size)}
    assert prepared.spans == ()
    plain = plain_logits(model, processor, user(IMAGE, "Why?"), images=[image])
    torch.testing.assert_close(last_logits(model, prepared), plain, atol=1e-5, rtol=0)


def test_several_images_as_the_plain_api_sees_them(loaded):
    family, model, processor = loaded("llava_onevision")
    images = [picture(80, 140), picture(140, 60)]
    messages = user(IMAGE, IMAGE, "Same?")
    features = [family.vision_features(model, processor, image) for image in images]
    prepared = family.prepare(model, processor, messages, features)
    assert prepared.visual_tokens == 2 * (169 + 1)
    plain = plain_logits(model, processor, messages, images=[images])
    torch.testing.assert_close(last_logits(model, prepared), plain, atol=1e-5, rtol=0)


def test_other_image_modes(loaded):
    family, model, processor = loaded("llava_onevision")
    for mode in ("L", "RGBA", "P"):
        assert family.vision_features(model, processor, picture().convert(mode)).kind == "image"


@pytest.mark.parametrize(
    ("newline", "extra", "reducible"),
    [("grid", 7 * 5, False), ("frame", 5, False), ("one_token", 1, True), ("no_token", 0, True)],
)
def test_newlines_of_a_prompt(loaded, newline, extra, reducible):
    family, model, processor = loaded("llava_video")
    features = [family.vision_features(model, processor, clip())]
    prepared = family.prepare(model, processor, user(VIDEO, "Why?"), features, newline=newline)
    assert prepared.visual_tokens == 5 * 49 + extra
    assert [span.grid for span in prepared.spans] == ([(5, 7, 7)] if reducible else [])
    assert last_logits(model, prepared).isfinite().all()


def test_default_newline_is_the_checkpoints(loaded):
    for name, extra in (("llava_video", 7 * 5), ("llava_onevision", 1)):
        family, model, processor = loaded(name)
        features = [family.vision_features(model, processor, clip())]
        assert family.prepare(model, processor, user(VIDEO), features).visual_tokens == 5 * 49 + extra


def test_unknown_newline(loaded):
    family, model, processor = loaded("llava_video")
    features = [family.vision_features(model, processor, clip())]
    with pytest.raises(ValueError, match=r"newline='rows' is not valid; it must be one of 'grid', 'frame'"):
        family.prepare(model, processor, user(VIDEO), features, newline="rows")


def test_several_videos_and_an_image(loaded):
    family, model, processor = loaded("llava_onevision")
    visuals = [clip(3), picture(), clip(2, 60, 60)]
    features = [family.vision_features(model, processor, visual) for visual in visuals]
    prepared = family.prepare(model, processor, user(VIDEO, "and", IMAGE, VIDEO, "?"), features, newline="no_token")
    first, second = prepared.spans
    assert (first.grid, second.grid) == ((3, 7, 7), (2, 7, 7))
    assert first.end < second.start
    alone = family.prepare(model, processor, user(VIDEO), [features[2]], newline="no_token")
    (span,) = alone.spans
    assert prepared.inputs_embeds[0, second.start : second.end].equal(alone.inputs_embeds[0, span.start : span.end])


def test_stored_features_in_another_precision(loaded):
    """Features come back from disk in the dtype they were stored in; the model's own is used from
    there on."""
    family, model, processor = loaded("llava_video")
    features = family.vision_features(model, processor, clip())
    stored = VisionFeatures(features.tensor.to(torch.bfloat16), "video", dict(features.metadata))
    exact = family.prepare(model, processor, user(VIDEO), [features])
    rounded = family.prepare(model, processor, user(VIDEO), [stored])
    assert rounded.inputs_embeds.dtype == torch.float32
    torch.testing.assert_close(rounded.inputs_embeds, exact.inputs_embeds, atol=0.02, rtol=0.02)


def test_read_video(loaded, mp4):
    family, model, processor = loaded("llava_video")
    video = family.read_video(mp4, VideoSettings(max_frames=128, fps=1.0))
    assert video.indices == [0, 12, 24, 36, 48, 60, 71]
    assert family.read_video(mp4, VideoSettings(max_frames=4, fps=1.0)).indices == [0, 23, 47, 71]
    features = family.vision_features(model, processor, video)
    assert features.metadata == {
        "vid": "moving",
        "video_time": 6.0,
        "frame_time": "0.00s,1.00s,2.00s,3.00s,4.00s,5.00s,5.92s",
        "num_frames": 7,
    }


def test_frames_are_resized_like_pil_does(loaded):
    """The published pipeline resizes with PIL; transformers' video processor may differ in the last
    bit of a pixel."""
    _, _, processor = loaded("llava_video")
    frames = moving_frames(2, 96, 130)
    ours = processor.video_processor(videos=[frames], do_sample_frames=False, return_tensors="pt")
    pil = np.stack([np.asarray(Image.fromarray(f).resize((54, 54), Image.Resampling.BICUBIC)) for f in frames])
    expected = (torch.from_numpy(pil).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    difference = (ours["pixel_values_videos"][0] - expected).abs() * 127.5
    assert difference.max() <= 1.01
    assert difference.mean() < 0.1
