"""What is predicted before a run against what a run holds: exact where it can be, elsewhere a bound that is near."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sttm_lmms import STTMConfig
from sttm_lmms.families import get_family
from sttm_lmms.families.qwen2_vl import run_vision_tower
from sttm_lmms.runtime.memory import (
    ALLOWANCE,
    GIB,
    ModelSizes,
    Part,
    VisionSizes,
    Work,
    largest_fit,
    predict,
    prefix_kv_bytes,
    sizes_of,
    vision_bytes,
    ways_out,
)
from sttm_lmms.runtime.prefix import prefill_prefix
from sttm_lmms.runtime.reducer import TokenReducer
from sttm_lmms.testing.meter import LiveBytes
from sttm_lmms.testing.tiny import TinySizes, tiny_model
from sttm_lmms.types import VisionFeatures
from sttm_lmms.video import Video, VideoSettings

SIZES = TinySizes(
    hidden_size=128,
    intermediate_size=640,
    layers=6,
    vision_hidden_size=64,
    vision_layers=6,
    image_size=112,
    patch_size=8,
)
QUESTION = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Why?"}]}]

SIGLIP = VisionSizes(1152, 4304, 26, pixels=588, patches=729, keeps_states=True)
LLAVA_VIDEO_7B = ModelSizes(16_060_000_000, 2, 28, 3584, 18944, 28, 4, 128, 152064, SIGLIP)


@pytest.fixture(scope="module", params=["llava_video", "qwen2_vl"])
def small(request):
    model, processor = tiny_model(request.param, sizes=SIZES)
    return get_family(request.param), model, processor


def features_of(family, model, grid):
    channels = model.config.get_text_config().hidden_size
    tensor = torch.randn(*grid, channels, generator=torch.Generator().manual_seed(0))
    times = ",".join(f"{t:.2f}s" for t in range(grid[0]))
    metadata = {"video_time": float(grid[0]), "frame_time": times, "num_frames": grid[0]}
    return VisionFeatures(tensor, "video", metadata, projected=True)


def test_the_meter_counts_what_is_alive():
    with LiveBytes() as meter:
        a = torch.zeros(1000)
        view = a.view(10, 100)
        b = view + 1
        del a, view
        c = b * 2
        del b
    assert (meter.now, meter.peak) == (4000, 8000)
    del c
    assert meter.now == 0


@pytest.mark.parametrize(("budget", "start_layer"), [(0.5, 2), (0.3, 0), (None, 2)])
def test_a_prefill(small, budget, start_layer):
    family, model, processor = small
    grid = (24, 7, 7)
    prepared = family.prepare(model, processor, QUESTION, [features_of(family, model, grid)], newline="no_token")
    config = None if budget is None else STTMConfig(budget=budget, start_layer=start_layer)
    with TokenReducer(model, config, spans=()) as reducer, LiveBytes() as meter:
        prefix = prefill_prefix(reducer, prepared)
    work = Work(
        grid,
        kept=prefix.kept_tokens / prefix.visual_tokens,
        start_layer=start_layer,
        text_tokens=prepared.prefix_length - prepared.visual_tokens,
    )
    sizes = sizes_of(model)
    assert prefix_kv_bytes(sizes, work, start_layer, sizes.layers - start_layer) == prefix.nbytes
    needs = predict(sizes, work)
    assert needs.weights == sum(p.numel() * 4 for p in model.parameters())
    predicted = prefix.nbytes + max(needs.merging, needs.activations)
    assert meter.peak <= predicted <= 1.5 * meter.peak


def test_the_tower_sees_a_long_video_in_chunks():
    """LLaVA: pixels and tower of 16 frames at a time, then projected and pooled in the same chunks."""
    family = get_family("llava_video")
    model, processor = tiny_model("llava_video", sizes=SIZES)
    frames = np.random.default_rng(0).integers(0, 255, (48, 112, 112, 3), dtype=np.uint8)
    video = Video(frames, [float(t) for t in range(48)], list(range(48)), 1.0, 48.0, "clip.mp4", 1.0)
    with torch.inference_mode(), LiveBytes() as meter:
        features = family.project(model, family.vision_features(model, processor, video))
    grid = tuple(features.tensor.shape[:3])
    predicted = vision_bytes(sizes_of(model), Work(grid))
    assert meter.peak <= predicted <= 1.6 * meter.peak


def test_the_tower_of_qwen2_vl():
    model, _ = tiny_model("qwen2_vl", sizes=SIZES)
    steps, high, wide = 16, 8, 12
    patches = torch.randn(steps * high * wide, 1176)
    with torch.inference_mode(), LiveBytes() as meter:
        run_vision_tower(model, patches, torch.tensor([[steps, high, wide]]))
    predicted = vision_bytes(sizes_of(model), Work((steps, high // 2, wide // 2)))
    assert meter.peak <= predicted <= 4 * meter.peak + patches.nbytes


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_what_is_kept_of_a_video_is_counted(name):
    """Qwen3-VL keeps the features of its deepstack layers as well."""
    family = get_family(name)
    sizes = TinySizes(hidden_size=256, heads=4, vision_hidden_size=32, vision_layers=4)
    model, processor = tiny_model(name, sizes=sizes)
    frames = np.random.default_rng(0).integers(0, 255, (32, 128, 160, 3), dtype=np.uint8)
    settings = VideoSettings(max_frames=32, min_pixels=4 * 28 * 28, max_pixels=40 * 28 * 28)
    video = family.preprocess(processor, family.read_video(frames, settings))
    with torch.inference_mode(), LiveBytes() as meter:
        features = family.vision_features(model, processor, video)
    work = Work(tuple(features.tensor.shape[:3]), text_tokens=1)
    needs = predict(sizes_of(model), work)
    prompt = work.full * sizes.hidden_size * 4
    assert features.tensor.nbytes + prompt <= needs.features <= 2 * features.tensor.nbytes + prompt
    assert meter.peak <= needs.vision


def test_a_long_video_costs_the_tower_little_more():
    """1,024 frames: what grows is the kept output, 2.6 MB a frame, not the tower's or the projector's work."""
    short, long = (vision_bytes(LLAVA_VIDEO_7B, Work((t, 14, 14))) for t in (128, 1024))
    per_frame = 2 * (2 * 729 * 1152) + 2 * 2 * 196 * 3584
    assert long - short <= 896 * per_frame
    assert long < 5 * GIB


def test_a_7b_model_by_hand():
    work = Work((128, 14, 14), kept=0.5, text_tokens=100, new_tokens=32)
    needs = predict(LLAVA_VIDEO_7B, work)
    token = 2 * 4 * 128 * 2
    full, short = 128 * 196 + 100, 64 * 196 + 100
    assert needs.kv == token * (2 * full + 26 * short) + token * 28 * 132
    assert 23 * GIB > needs.total > needs.weights + needs.kv + ALLOWANCE
    assert needs.total == needs.weights + needs.kv + needs.features + needs.activations + ALLOWANCE
    assert predict(LLAVA_VIDEO_7B, replace(work, kept=1.0)).kv > 1.8 * needs.kv
    assert predict(LLAVA_VIDEO_7B, replace(work, kept=1.0)).merging == 0


def test_batch_and_keep_multiply_the_prefix():
    work = Work((128, 14, 14), kept=0.5)
    one = predict(LLAVA_VIDEO_7B, work)
    assert predict(LLAVA_VIDEO_7B, replace(work, keep=3)).kv > 2.9 * one.kv
    assert predict(LLAVA_VIDEO_7B, replace(work, batch_size=4)).kv > 4.9 * one.kv
    eager = predict(LLAVA_VIDEO_7B, replace(work, eager=True))
    assert eager.activations - one.activations == 28 * work.full**2 * 6


def test_parts_of_a_model_add_up():
    work = Work((64, 14, 14), kept=0.3, start_layer=2)
    first = Part(8 * GIB, frozenset(range(10)))
    last = Part(LLAVA_VIDEO_7B.weights - 8 * GIB, frozenset(range(10, 28)), vision=False, embedding=False)
    one, two = predict(LLAVA_VIDEO_7B, work, first), predict(LLAVA_VIDEO_7B, work, last)
    both = predict(LLAVA_VIDEO_7B, work)
    assert one.kv + two.kv == both.kv
    assert one.weights + two.weights == both.weights
    assert two.vision == two.merging == two.features == 0
    assert two.activations < one.activations == both.activations


def test_how_many_frames_fit():
    work = Work((1024, 14, 14))
    found = largest_fit(LLAVA_VIDEO_7B, work, 24 * GIB)
    assert found is not None
    assert 16 < found < 1024
    fits, does_not = (predict(LLAVA_VIDEO_7B, replace(work, grid=(t, 14, 14))).total for t in (found, found + 1))
    assert fits <= 24 * GIB < does_not
    assert largest_fit(LLAVA_VIDEO_7B, work, 8 * GIB) is None


def test_ways_out():
    assert ways_out(Work((8, 2, 2))) == ["max_frames", "the tokens that are kept (budget=0.5)"]
    text = ", ".join(ways_out(Work((8, 2, 2), kept=0.5, batch_size=4, keep=3), host_cache_gb=8))
    for name in ("batch_size (now 4)", "keep (now 3", "host_cache_gb (now 8)", "max_frames", "budget"):
        assert name in text


@pytest.mark.parametrize("wrong", [{"kept": 0.0}, {"kept": 1.1}, {"batch_size": 0}, {"keep": 0}])
def test_values_are_checked(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        Work((8, 2, 2), **wrong)
