"""``sttm-lmms doctor --model ... --frames N --budget B``: the memory of a run, before it."""

from __future__ import annotations

import pytest

from sttm_lmms.cli import main
from sttm_lmms.cli.doctor import predict_memory


def test_a_7b_model_on_80_gib(checkpoint):
    (finding,) = predict_memory(str(checkpoint("LLaVA-Video-7B-Qwen2")), 128, 0.5, gpu_memory=80)
    assert finding.status == "ok"
    assert "128 frames (25,088 tokens, 12,544 kept" in finding.detail
    for kind in ("weights 14.96", "kv 0.", "activations ", "merging 0.", "vision "):
        assert kind in finding.detail


def test_1024_frames_on_24_gib(checkpoint):
    (finding,) = predict_memory(str(checkpoint("LLaVA-Video-7B-Qwen2")), 1024, 0.3, gpu_memory=24)
    assert finding.status == "problem"
    assert "200,704 tokens" in finding.detail
    assert "lower max_frames (now 1024) or budget; " in finding.advice
    frames = int(finding.advice.partition(" frames would fit")[0].rpartition(" ")[2])
    assert 16 < frames < 1024
    assert predict_memory(str(checkpoint("LLaVA-Video-7B-Qwen2")), frames, 0.3, gpu_memory=24)[0].status == "ok"


def test_nothing_to_compare_with(checkpoint, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (finding,) = predict_memory(str(checkpoint("Qwen2-VL-7B-Instruct")), 256, 0.5)
    assert finding.status == "note"
    assert "--gpu-memory" in finding.advice


def test_wrong_arguments(checkpoint, tmp_path, capsys):
    (finding,) = predict_memory(str(tmp_path), 8, 0.5)
    assert finding.status == "problem"
    assert "no model.safetensors" in finding.detail
    for args, words in (
        (["--frames", "8"], "give it with --model"),
        (["--model", str(tmp_path), "--frames", "8", "--budget", "2"], "budget=2.0 is out of range"),
    ):
        with pytest.raises(SystemExit):
            main(["doctor", *args])
        assert words in capsys.readouterr().err
