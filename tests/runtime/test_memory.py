"""What is predicted before a run against what a run holds: exact where it is counted, enough where
it is allowed."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlavaOnevisionForConditionalGeneration, Qwen2Config

from sttm_lmms import STTMConfig
from sttm_lmms.families import get_family
from sttm_lmms.runtime.memory import GIB, Workload, estimate_memory, most_frames, suggest_settings
from sttm_lmms.runtime.prefix import prefill_prefix
from sttm_lmms.runtime.reducer import TokenReducer
from sttm_lmms.testing.meter import LiveBytes
from sttm_lmms.testing.tiny import TinySizes, tiny_model
from sttm_lmms.types import VisionFeatures
from sttm_lmms.video import VideoSettings

SIZES = TinySizes(
    hidden_size=128,
    intermediate_size=640,
    layers=6,
    vision_hidden_size=64,
    vision_layers=6,
    image_size=112,
    patch_size=8,
)
# Merging goes through a video in blocks, so that what it needs does not grow with the video.
MERGING = 16 * 2**20
QUESTION = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Why?"}]}]


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
    work = Workload(
        grid,
        kept=prefix.kept_tokens / prefix.visual_tokens,
        start_layer=start_layer,
        text_tokens=prepared.prefix_length - prepared.visual_tokens,
    )
    (need,) = estimate_memory(model, work).values()
    text = model.config.get_text_config()
    token = 2 * text.num_key_value_heads * text.hidden_size // text.num_attention_heads * 4
    assert need.kv == prefix.nbytes + token * text.num_hidden_layers * (work.text_tokens + work.new_tokens)
    assert need.weights == sum(p.numel() * 4 for p in model.parameters())
    assert meter.peak <= need.total - need.weights - need.features + (0 if config is None else MERGING)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl"])
def test_what_is_kept_of_a_video_is_counted(name):
    """Qwen3-VL keeps the features of its deepstack layers as well."""
    family = get_family(name)
    model, processor = tiny_model(name)
    frames = np.random.default_rng(0).integers(0, 255, (8, 128, 160, 3), dtype=np.uint8)
    settings = VideoSettings(max_frames=8, min_pixels=4 * 28 * 28, max_pixels=40 * 28 * 28)
    with torch.inference_mode():
        features = family.vision_features(model, processor, family.read_video(frames, settings))
    work = Workload(tuple(features.tensor.shape[:3]), text_tokens=1)
    (need,) = estimate_memory(model, work).values()
    assert need.features == 2 * features.tensor.nbytes + 4 * model.config.get_text_config().hidden_size


@pytest.fixture(scope="module")
def model_7b():
    """LLaVA-Video-7B's decoder, without weights."""
    config = deepcopy(tiny_model("llava_video")[0].config)
    sizes = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "vocab_size": 152064}
    config.text_config = Qwen2Config(**sizes, num_attention_heads=28, num_key_value_heads=4)
    with torch.device("meta"):
        return LlavaOnevisionForConditionalGeneration(config)


WORK = Workload((128, 14, 14), kept=0.5, text_tokens=100, new_tokens=32)


def needs(model, work=WORK, **kwargs):
    return next(iter(estimate_memory(model, work, itemsize=2, **kwargs).values()))


def test_a_7b_model_by_hand(model_7b):
    need = needs(model_7b)
    token = 2 * 4 * 128 * 2
    full, short = 128 * 196 + 100, 64 * 196 + 100
    assert need.kv == token * (2 * full + 26 * short) + token * 28 * 132
    assert need.features == (2 * 128 * 196 + 100) * 3584 * 2
    assert need.activations == 3 * (3584 + 18944) * full * 2
    assert need.total == pytest.approx(1.2 * (need.weights + need.kv + need.features + need.activations))
    assert needs(model_7b, replace(WORK, kept=1.0)).kv > 1.8 * need.kv


def test_batch_and_keep_multiply_the_prefix(model_7b):
    one = needs(model_7b)
    assert needs(model_7b, replace(WORK, keep=3)).kv > 2.9 * one.kv
    assert needs(model_7b, replace(WORK, batch_size=4)).kv > 4.9 * one.kv
    eager = needs(model_7b, replace(WORK, eager=True))
    assert eager.activations - one.activations == 28 * WORK.prompt(0) ** 2 * 6


def test_parts_of_a_model_add_up(model_7b):
    places = {"model": "cuda:0", "lm_head": "cuda:1"}
    places |= {f"model.language_model.layers.{n}": "cuda:1" for n in range(10, 28)}
    parts, both = estimate_memory(model_7b, WORK, itemsize=2, places=places), needs(model_7b)
    one, two = parts["cuda:0"], parts["cuda:1"]
    assert (one.kv + two.kv, one.weights + two.weights) == (both.kv, both.weights)
    assert (one.features, two.features) == (both.features, 0)
    assert two.activations < one.activations == both.activations


def test_four_bits_shrink_the_linear_layers(model_7b):
    linear = sum(
        m.weight.numel() for n, m in model_7b.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"
    )
    saved = needs(model_7b).weights - needs(model_7b, four_bit=True).weights
    assert saved == pytest.approx(linear * (2 - 4.5 / 8))


def test_how_many_frames_fit(model_7b):
    def need(frames: int) -> int:
        return needs(model_7b, Workload((frames, 14, 14))).total

    found = most_frames(need, 24 * GIB, 1024)
    assert found is not None
    assert need(found) <= 24 * GIB < need(found + 1)
    assert most_frames(need, 8 * GIB, 1024) is None


def test_suggested_settings():
    assert suggest_settings() == "max_frames or the tokens that are kept (budget=0.5)"
    text = suggest_settings(batch_size=4, keep=3, host_cache_gb=8, reduced=True)
    for name in ("batch_size (now 4)", "keep (now 3", "host_cache_gb (now 8)", "max_frames", "budget"):
        assert name in text


@pytest.mark.parametrize("wrong", [{"kept": 0.0}, {"kept": 1.1}, {"batch_size": 0}, {"keep": 0}])
def test_values_are_checked(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        Workload((8, 2, 2), **wrong)
