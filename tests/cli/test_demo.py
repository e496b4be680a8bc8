"""``sttm-lmms demo``: its parts, and once as a whole for one family."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("lmms_eval")

from sttm_lmms import demo
from sttm_lmms.cli import main
from sttm_lmms.errors import STTMError


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
    command = demo.lmms_eval_command(checkpoint, "budget=0.5", Path("out"))
    assert command[:5] == [sys.executable, "-m", "lmms_eval", "--model", "sttm_llava_video"]
    assert "pretrained=some/folder,budget=0.5,max_frames=16" in command


def test_the_small_qwen2_vl_sees_seven_by_seven_tokens_of_square_videos():
    from sttm_lmms.families.qwen2_vl import frame_size
    from sttm_lmms.video import VideoSettings

    command = demo.lmms_eval_command(demo.Checkpoint("qwen2_vl", Path("some/folder"), ""), "budget=0.5", Path("out"))
    assert "pretrained=some/folder,budget=0.5,fps=2,max_frames=32,min_pixels=37632,max_pixels=39200" in command
    for width, height in (*demo.SQUARE_SIZES, (720, 720)):
        assert frame_size(height, width, 32, VideoSettings(**demo.QWEN_VIDEO)) == (196, 196)


def test_a_failed_run_shows_what_lmms_eval_said(tmp_path):
    command = [sys.executable, "-c", "print('it went wrong')"]
    with pytest.raises(STTMError, match="it went wrong"):
        demo.run(command, tmp_path / "out", tmp_path)


def test_an_unknown_family_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["demo", "--family", "qwen2vl"])
    assert "Did you mean 'qwen2_vl'?" in capsys.readouterr().err


@pytest.mark.slow
def test_the_demo(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["demo", "--videos", "3", "--family", "llava_video"])
    assert stopped.value.code == 0
    printed = "".join(capfd.readouterr())
    rows = [line for line in printed.splitlines() if line.startswith("│ llava_video")]
    kept = [float(line.split("│")[4].strip(" %")) for line in rows]
    assert kept[0] == 100
    assert 45 < kept[1] <= 50
    assert 25 < kept[2] <= 30
    out = tmp_path / "results" / "demo"
    assert len(list(out.rglob("*_results.json"))) == 3
    assert "llava_video" in (out / "leaderboard.md").read_text()
    assert list((out / "pictures").glob("sheet*.png"))
    # Result files are committed: they must not say where this machine keeps its files.
    assert str(tmp_path) not in "".join(file.read_text() for file in out.rglob("*.jsonl"))
