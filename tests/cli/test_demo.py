"""``sttm-lmms demo``: its parts, and once as a whole for one family."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("lmms_eval")

from sttm_lmms import demo
from sttm_lmms.cli import main


@pytest.mark.parametrize("family", ["llava_video", "qwen2_vl"])
def test_the_trained_checkpoint_is_used_and_named(family, tmp_path):
    found = demo.find_checkpoint(family, tmp_path)
    assert found.path.name == f"{family}_tiny"
    assert (found.path / "model.safetensors").stat().st_size < 8_000_000
    assert "trained" in found.description
    assert not any(tmp_path.iterdir())


def test_onevision_has_the_same_weights_in_the_other_layout(tmp_path):
    from sttm_lmms.families import load_pretrained

    found = demo.find_checkpoint("llava_onevision", tmp_path)
    assert json.loads((found.path / "config.json").read_text())["model_type"] == "llava_onevision"
    assert "Hugging Face layout" in found.description
    (ours, _), (original, _) = (load_pretrained(p, device_map="cpu") for p in (found.path, demo.shipped("llava_video")))
    assert ours.state_dict().keys() == original.state_dict().keys()
    assert all(torch.equal(tensor, original.state_dict()[name]) for name, tensor in ours.state_dict().items())


def test_videos_are_made_once(tmp_path):
    root = demo.make_videos(tmp_path, 1)
    (video,) = (root / "vnbench" / "videos").iterdir()
    before = video.stat().st_mtime_ns
    assert demo.make_videos(tmp_path, 1) == root
    assert video.stat().st_mtime_ns == before


def test_the_command_is_lmms_eval_itself():
    checkpoint = demo.Checkpoint("llava_video", Path("some/folder"), "")
    args = demo.lmms_eval_args(checkpoint, "budget=0.5")
    assert args[:2] == ["--model", "sttm_llava_video"]
    assert "pretrained=some/folder,budget=0.5,max_frames=16,sampling=model" in args


def test_the_small_qwen2_vl_sees_seven_by_seven_tokens_of_square_videos():
    from sttm_lmms.families.qwen2_vl import frame_size
    from sttm_lmms.video import VideoSettings

    args = demo.lmms_eval_args(demo.Checkpoint("qwen2_vl", Path("some/folder"), ""), "budget=0.5")
    assert (
        "pretrained=some/folder,budget=0.5,fps=2,max_frames=32,min_pixels=37632,max_pixels=39200,sampling=model" in args
    )
    for width, height in (*demo.SQUARE_SIZES, (720, 720)):
        assert frame_size(height, width, 32, VideoSettings(**demo.QWEN_VIDEO)) == (196, 196)


def test_an_unknown_family_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["demo", "--family", "qwen2vl"])
    assert "Did you mean 'qwen2_vl'?" in capsys.readouterr().err


def test_speed_is_shown_for_all_tokens_and_two_budgets(capsys):
    from rich.console import Console

    from sttm_lmms.demo.speed import measure_speed, speed_table
    from sttm_lmms.testing.shapes import DecoderShape

    shape = DecoderShape(hidden=64, layers=3, heads=4, kv_heads=2, mlp=128, vocab=100, grid=(7, 7))
    rows = measure_speed(shape, frames=4)
    assert [row.visual_tokens for row in rows] == [196, 98, 58]
    assert rows[0].seconds > 0
    assert 1 / 3 < 1 / rows[2].ideal_speedup < 1 / rows[1].ideal_speedup < 1 / rows[0].ideal_speedup == 1
    Console(width=120).print(speed_table(rows, shape, frames=4))
    assert "30%" in capsys.readouterr().out


@pytest.mark.slow
def test_the_demo(tmp_path, monkeypatch, capfd, warm_launch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "outputs" / "demo"
    notes = out / "llava_video-50" / "20261121_000000_results.json"
    notes.parent.mkdir(parents=True)
    notes.write_text("a user's own file")
    with pytest.raises(SystemExit) as stopped:
        main(["demo", "--videos", "3", "--family", "llava_video", "--no-speed"])
    assert stopped.value.code == 0
    printed = "".join(capfd.readouterr())
    rows = [line for line in printed.splitlines() if line.startswith("│ llava_video")]
    kept = [float(line.split("│")[4].strip(" %")) for line in rows]
    assert kept[0] == 100
    assert 45 < kept[1] <= 50
    assert 25 < kept[2] <= 30
    assert {file.name for file in (out / "llava_video-30").iterdir()} == {
        "results.json",
        "samples_vnbench.jsonl",
        "log.txt",
    }
    assert notes.read_text() == "a user's own file"
    board = (out / "leaderboard.md").read_text()
    assert all(f"{out.relative_to(tmp_path)}/llava_video-{name}/results.json" in board for name in ("30", "50"))
    assert list((out / "pictures").glob("sheet*.png"))
    # Result files are committed: they must not say where this machine keeps its files.
    assert str(tmp_path) not in "".join(file.read_text() for file in out.rglob("*.jsonl"))
    # And nothing lies outside of the folder that git ignores.
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]
