"""Qwen2-VL: sampling and resizing as qwen-vl-utils, the plain transformers API's logits, M-RoPE
positions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from family_helpers import clip, last_logits, moving_frames
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from qwen_vl_utils.vision_process import fetch_video

from sttm_lmms.errors import VideoError
from sttm_lmms.families.qwen2_vl import frame_numbers, frame_size, mrope_positions, sample_frames
from sttm_lmms.video import VideoInfo, VideoSettings, write_video

VIDEO, IMAGE = {"type": "video"}, {"type": "image"}


def user(*parts) -> list:
    return [{"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}]


def reference(path, settings: VideoSettings) -> tuple[torch.Tensor, float]:
    """Frames ``[T, 3, H, W]`` and rate by qwen-vl-utils itself."""
    request = {"video": str(path), "fps": settings.fps, "max_frames": settings.max_frames}
    request |= {k: v for k in ("min_pixels", "max_pixels") if (v := getattr(settings, k)) is not None}
    return fetch_video(request, return_video_sample_fps=True)


@pytest.mark.parametrize(
    "settings",
    [
        VideoSettings(max_frames=256, fps=2.0),
        VideoSettings(max_frames=7, fps=2.0),
        VideoSettings(max_frames=256, fps=0.1),
        VideoSettings(max_frames=256, fps=2.0, min_pixels=28 * 28 * 4, max_pixels=28 * 28 * 6),
        VideoSettings(max_frames=256, fps=2.0, min_pixels=28 * 28 * 400),
    ],
)
def test_frames_of_qwen_vl_utils(loaded, mp4, settings):
    pytest.importorskip("decord", reason="qwen-vl-utils reads videos with decord")
    family, _, _ = loaded("qwen2_vl", "hf")
    video = family.read_video(mp4, settings)
    frames, rate = reference(mp4, settings)
    assert len(video.frames) % 2 == 0
    assert video.frames.shape[:3] == (len(frames), *frames.shape[2:])
    assert np.array_equal(video.frames.transpose(0, 3, 1, 2), frames.numpy())
    assert video.sample_fps == pytest.approx(rate)


def test_short_videos(loaded, tmp_path):
    family, model, processor = loaded("qwen2_vl", "hf")
    for count, pairs in ((1, 1), (2, 1), (3, 1), (5, 2)):
        path = write_video(tmp_path / f"{count}.mp4", moving_frames(count, 64, 64), fps=25)
        video = family.read_video(path, VideoSettings(max_frames=256, fps=2.0))
        features = family.vision_features(model, processor, video)
        assert features.tensor.shape[0] == pairs
        assert features.metadata["video_grid_thw"][0] == pairs


@given(total=st.integers(1, 5000), fps=st.floats(5, 60), rate=st.floats(0.1, 10), most=st.integers(1, 400))
def test_sampled_frames(total, fps, rate, most):
    indices = sample_frames(total, fps, VideoSettings(max_frames=most, fps=rate))
    assert indices == sorted(set(indices))
    assert indices[0] == 0
    assert len(indices) <= max(2, most)
    assert len(indices) == 1 if total == 1 else len(indices) % 2 == 0
    assert indices[-1] == total - 1


def published_frames(total: int, video_fps: float, fps: float, most: int) -> list[int]:
    """The sampler of the published runs, step by step: a frame every 1/fps seconds, the last one,
    an even number."""
    numbers, k = [], 0
    while (number := math.ceil(k * video_fps / fps)) < total - 1:
        numbers.append(number)
        k += 1
    numbers = [*dict.fromkeys(numbers), total - 1]
    if len(numbers) > most:
        numbers = [int(number) for number in np.linspace(0, total - 1, most)]
    return numbers if len(numbers) % 2 == 0 else [*numbers, numbers[-1]]


@given(total=st.integers(1, 5000), fps=st.floats(5, 60), rate=st.floats(0.1, 10), most=st.integers(1, 400))
def test_frames_of_the_published_runs(total, fps, rate, most):
    info = VideoInfo("clip.mp4", total, fps, total / fps, 640, 360)
    numbers = frame_numbers(info, VideoSettings(max_frames=most, fps=rate, sampling="uniform_fps"))
    assert numbers == published_frames(total, fps, rate, most)
    assert len(numbers) % 2 == 0


@pytest.mark.parametrize(("seconds", "counts", "shared"), [(44, (90, 88), 5), (600, (256, 256), 129)])
def test_the_two_samplers_are_not_the_same(seconds, counts, shared):
    info = VideoInfo("clip.mp4", 30 * seconds, 30.0, seconds, 640, 360)
    published, own = (frame_numbers(info, VideoSettings(256, 2.0, sampling=name)) for name in ("uniform_fps", "model"))
    assert (len(published), len(own)) == counts
    assert len(set(published) & set(own)) == shared


def test_published_frames_are_read_and_resized(loaded, mp4):
    family, _, _ = loaded("qwen2_vl", "hf")
    video = family.read_video(mp4, VideoSettings(max_frames=256, fps=2.0, sampling="uniform_fps"))
    assert video.indices == [*range(0, 71, 6), 71, 71]
    own = family.read_video(mp4, VideoSettings(max_frames=256, fps=2.0))
    assert video.frames.shape[1:] == own.frames.shape[1:]
    assert np.array_equal(video.frames[0], own.frames[0])
    assert np.array_equal(video.frames[-1], own.frames[-1])


@given(height=st.integers(20, 2000), width=st.integers(20, 2000), frames=st.integers(1, 768))
def test_frame_sizes(height, width, frames):
    h, w = frame_size(height, width, frames, VideoSettings())
    assert (h % 28, w % 28) == (0, 0)
    assert h * w <= 768 * 28 * 28
    assert min(h, w) >= 28
    assert (h >= w) == (height >= width) or abs(h - w) <= 28


@pytest.mark.parametrize("tokens", [1, 2, 3, 6])
@pytest.mark.parametrize("size", [(480, 640), (720, 1280), (1280, 720), (100, 1900), (1900, 100)])
def test_few_pixels_alone_are_enough(size, tokens):
    h, w = frame_size(*size, 8, VideoSettings(max_pixels=28 * 28 * tokens))
    assert h * w <= 28 * 28 * tokens
    assert (h % 28, w % 28) == (0, 0)
    assert min(h, w) >= 28


def test_too_narrow_for_qwen_vl_utils(loaded, tmp_path):
    family, _, _ = loaded("qwen2_vl", "hf")
    path = write_video(tmp_path / "line.mp4", moving_frames(2, 16, 3400), fps=2)
    with pytest.raises(VideoError, match=r"line\.mp4: absolute aspect ratio"):
        family.read_video(path, VideoSettings())


@torch.no_grad()
def plain_logits(model, processor, messages, **visuals) -> torch.Tensor:
    """What the stock processor and the stock forward make of the same conversation."""
    prompt = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    kwargs = {"videos_kwargs": {"do_resize": False, "cap_pixels_per_frame": False}} if "videos" in visuals else {}
    inputs = processor(text=[prompt], return_tensors="pt", **visuals, **kwargs)
    return model(**inputs, logits_to_keep=1).logits[0, -1]


@pytest.mark.parametrize(("height", "width"), [(84, 112), (140, 84), (28, 196)])
def test_video_as_the_plain_api_sees_it(loaded, height, width):
    family, model, processor = loaded("qwen2_vl", "hf")
    video = clip(6, height, width)
    features = family.vision_features(model, processor, video)
    grid = (3, height // 28, width // 28)
    assert features.tensor.shape == (*grid, 64)
    assert features.metadata == {"video_sample_fps": 1.0, "video_grid_thw": [3, height // 14, width // 14]}
    prepared = family.prepare(model, processor, user(VIDEO, "Why?"), [features])
    assert [span.grid for span in prepared.spans] == [grid]
    plain = plain_logits(
        model, processor, user(VIDEO, "Why?"), videos=[torch.from_numpy(video.frames.transpose(0, 3, 1, 2))]
    )
    torch.testing.assert_close(last_logits(model, prepared), plain, atol=1e-5, rtol=0)


def test_image_as_the_plain_api_sees_it(loaded):
    family, model, processor = loaded("qwen2_vl", "hf")
    image = Image.fromarray(moving_frames(1, 90, 150)[0])
    features = family.vision_features(model, processor, image)
    assert features.tensor.shape == (1, 3, 5, 64)
    prepared = family.prepare(model, processor, user(IMAGE, "Why?"), [features])
    assert (prepared.spans, prepared.visual_tokens) == ((), 15)
    plain = plain_logits(model, processor, user(IMAGE, "Why?"), images=[image])
    torch.testing.assert_close(last_logits(model, prepared), plain, atol=1e-5, rtol=0)


def test_chunks_of_frames_change_nothing(loaded):
    family, model, processor = loaded("qwen2_vl", "hf")
    long, short = clip(70, 56, 56), clip(66, 56, 56)
    features = [family.vision_features(model, processor, video).tensor for video in (long, short)]
    assert features[0].shape == (35, 2, 2, 64)
    torch.testing.assert_close(features[0][:33], features[1], atol=1e-5, rtol=0)


def test_several_videos(loaded):
    family, model, processor = loaded("qwen2_vl", "hf")
    clips = [clip(4, 56, 84), clip(2, 112, 56)]
    features = [family.vision_features(model, processor, video) for video in clips]
    prepared = family.prepare(model, processor, user(VIDEO, VIDEO, "Which?"), features)
    assert [span.grid for span in prepared.spans] == [(2, 2, 3), (1, 4, 2)]
    tensors = [torch.from_numpy(video.frames.transpose(0, 3, 1, 2)) for video in clips]
    plain = plain_logits(model, processor, user(VIDEO, VIDEO, "Which?"), videos=tensors)
    torch.testing.assert_close(last_logits(model, prepared), plain, atol=1e-5, rtol=0)


def test_newline_is_refused(loaded):
    family, model, processor = loaded("qwen2_vl", "hf")
    with pytest.raises(ValueError, match=r"newline='grid' is not valid; it must be one of 'no_token'"):
        family.prepare(model, processor, user("Hi."), [], newline="grid")


def test_positions():
    positions = mrope_positions(9, [(2, (1, 2, 2))])[:, 0]
    assert positions.tolist() == [
        [0, 1, 2, 2, 2, 2, 4, 5, 6],
        [0, 1, 2, 2, 3, 3, 4, 5, 6],
        [0, 1, 2, 3, 2, 3, 4, 5, 6],
    ]


def test_text_after_a_long_video_starts_after_its_last_step():
    positions = mrope_positions(8, [(1, (5, 1, 1))])[:, 0]
    assert positions[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert positions[1].tolist() == [0, 1, 1, 1, 1, 1, 6, 7]


@given(
    grids=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)), max_size=3),
    gap=st.integers(1, 4),
)
def test_positions_agree_with_transformers(qwen, grids, gap):
    """Wherever transformers' rule and the trained one are the same: no more steps than rows or
    columns."""
    grids = [(min(t, max(h, w)), h, w) for t, h, w in grids]
    starts, types = [], [0] * gap
    for t, h, w in grids:
        starts.append(len(types))
        types += [2] * (t * h * w) + [0] * gap
    ours = mrope_positions(len(types), list(zip(starts, grids, strict=True)))
    thw = torch.tensor([[t, 2 * h, 2 * w] for t, h, w in grids]) if grids else None
    theirs, _ = qwen.model.get_rope_index(
        torch.zeros(1, len(types), dtype=torch.long), torch.tensor([types]), video_grid_thw=thw
    )
    assert ours.equal(theirs)


@pytest.fixture(scope="module")
def qwen(loaded):
    return loaded("qwen2_vl", "hf")[1]
