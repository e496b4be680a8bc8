"""``extract`` and ``calibrate`` on a few real videos and a small checkpoint."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import yaml

from sttm_lmms import STTMConfig
from sttm_lmms.benchmarks.mini import write_benchmark
from sttm_lmms.benchmarks.presets import resolve_preset
from sttm_lmms.cli import main
from sttm_lmms.cli.videos import videos_of
from sttm_lmms.errors import FeatureError
from sttm_lmms.families import family_of, load_pretrained
from sttm_lmms.runtime.hidden import video_states
from sttm_lmms.runtime.prefix import prefill_prefix
from sttm_lmms.runtime.reducer import TokenReducer
from sttm_lmms.runtime.stored import open_store
from sttm_lmms.testing.tiny import build_tiny_checkpoint
from sttm_lmms.video import VideoSettings


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A data root with two videos and a checkpoint."""
    root = tmp_path_factory.mktemp("world")
    write_benchmark(root / "data", videos=2, lengths=(7,), sizes=((64, 64),), fps=(8,))
    build_tiny_checkpoint(root / "LLaVA-Video-7B-tiny", "llava_video")
    return root


@pytest.fixture
def run(world, capsys):
    """Run a command over the two videos; returns its status and what it printed."""

    def call(name, *args):
        common = ("--model", str(world / "LLaVA-Video-7B-tiny"), "--task", "vnbench", "--data", str(world / "data"))
        with pytest.raises(SystemExit) as stopped:
            main([name, *common, "--max-frames", "4", "--device", "cpu", *args])
        printed = capsys.readouterr()
        return stopped.value.code, printed.out + printed.err

    return call


def test_extract_tells_the_space_and_writes_nothing(run, world):
    status, printed = run("extract", "--size")
    assert status == 0
    bytes_of_a_video = 4 * 13 * 13 * 32 * 4
    assert f"full: {2 * bytes_of_a_video / 1024:.1f} KiB for 2 videos" in printed
    assert "pooled" in printed
    assert not (world / "data" / "vnbench" / "preprocess_data").exists()


def test_extract_stores_features_once(run, tmp_path):
    status, printed = run("extract", "--out", str(tmp_path))
    assert (status, "2 written, 0 there already" in printed) == (0, True)
    folder = tmp_path / "preprocess_data" / "LLaVA-Video-7B-tiny" / "F-4_fps-1"
    assert len(list((folder / "features").glob("*.safetensors"))) == 2
    assert "0 written, 2 there already" in run("extract", "--out", str(tmp_path))[1]


def test_features_of_qwen2_vl_are_those_that_a_run_with_the_same_pixels_reads(world, tmp_path):
    checkpoint = build_tiny_checkpoint(tmp_path / "Qwen2-VL-tiny", "qwen2_vl")
    pixels = {"min_pixels": 37632, "max_pixels": 39200}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in pixels.items()]
    common = ("--model", str(checkpoint), "--task", "vnbench", "--data", str(world / "data"), "--device", "cpu")
    with pytest.raises(SystemExit):
        main(["extract", *common, "--max-frames", "4", "--out", str(tmp_path), *options])
    settings = VideoSettings(max_frames=4, fps=2.0, sampling="uniform_fps", **pixels)
    store = open_store(tmp_path, str(checkpoint), settings, "float32", "full")
    (video_id, _) = min(videos_of("vnbench", world / "data")[1])
    assert store.load(video_id).tensor.shape[1:3] == (7, 7)
    other = open_store(tmp_path, str(checkpoint), replace(settings, sampling="model"), "float32", "full")
    with pytest.raises(FeatureError, match="sampling"):
        other.load(video_id)


def test_processes_share_the_videos(run, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert "1 written" in run("extract", "--out", str(tmp_path))[1]


def test_extract_reports_what_it_could_not_read(run, world, tmp_path):
    video = sorted((world / "data" / "vnbench" / "videos").iterdir())[0]
    content = video.read_bytes()
    video.write_bytes(b"")
    try:
        status, printed = run("extract", "--out", str(tmp_path))
    finally:
        video.write_bytes(content)
    assert status == 1
    assert "1 written" in printed
    assert f"failed: {video.stem}" in printed


def test_calibrate_writes_a_preset_that_meets_the_budget(run, world, tmp_path):
    file = tmp_path / "mine.yaml"
    status, printed = run("calibrate", "--budget", "0.4", "--out", str(file))
    assert status == 0, printed
    assert yaml.safe_load(file.read_text())["models"][0]["size"] == "7b"
    config = resolve_preset(
        str(file), family="llava_video", task="vnbench", checkpoint="lmms-lab/LLaVA-Video-7B-Qwen2"
    ).config
    model, processor = load_pretrained(world / "LLaVA-Video-7B-tiny", dtype=torch.float32)
    family = family_of(model)
    kept = []
    for path in (world / "data" / "vnbench" / "videos").iterdir():
        features = family.vision_features(model, processor, family.read_video(path, VideoSettings(max_frames=4)))
        messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Why?"}]}]
        prepared = family.prepare(model, processor, messages, [features], newline="no_token")
        with TokenReducer(model, config) as reducer:
            (reduction,) = prefill_prefix(reducer, prepared).reductions
        kept.append(reduction.budget)
    assert 0.38 < sum(kept) / 2 <= 0.401


def test_calibrate_needs_a_size(world, tmp_path, capsys):
    nameless = build_tiny_checkpoint(tmp_path / "nameless", "llava_video")
    with pytest.raises(SystemExit):
        main(["calibrate", "--model", str(nameless), "--task", "vnbench", "--budget", "0.4", "--out", "x.yaml"])
    assert "give --size, such as --size 7b" in capsys.readouterr().err


@pytest.mark.parametrize("layer", [0, 1, 3])
def test_video_states_are_what_the_layer_gets(layer, world):
    """Merging them equals what the reducer does in front of that layer."""
    model, processor = load_pretrained(world / "LLaVA-Video-7B-tiny", dtype=torch.float32)
    family = family_of(model)
    path = next((world / "data" / "vnbench" / "videos").iterdir())
    features = family.vision_features(model, processor, family.read_video(path, VideoSettings(max_frames=4)))
    states = video_states(model, processor, features, layer)
    assert states.shape == (4, 7, 7, 64)
    from sttm_lmms.methods.sttm import merge_video_tokens

    config = STTMConfig(0.6, 0.5, start_layer=layer)
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": " "}]}]
    prepared = family.prepare(model, processor, messages, [features], newline="no_token")
    with TokenReducer(model, config) as reducer:
        (reduction,) = prefill_prefix(reducer, prepared).reductions
    assert len(merge_video_tokens(states, config)) == reduction.after
