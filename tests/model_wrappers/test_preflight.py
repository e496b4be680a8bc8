"""What cannot work here ends before lmms-eval starts: one line, the last on the screen, with the
way out."""

from __future__ import annotations

import importlib.util
import re

import pytest
import torch

from sttm_lmms.cli import main
from sttm_lmms.families import load_pretrained, requirements
from sttm_lmms.model_wrappers import harness
from sttm_lmms.model_wrappers.preflight import check_arguments


@pytest.fixture
def bare(monkeypatch):
    """A machine without GPU, without flash-attn, kernels and bitsandbytes, and without a
    network."""
    missing = ("flash_attn", "kernels", "bitsandbytes")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    find = importlib.util.find_spec
    monkeypatch.setattr(requirements, "find_spec", lambda name: None if name in missing else find(name))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


CASES = {
    "device=cuda": ("device=cuda: .*(CUDA|GPU).*; leave device out, say device=cpu, or see `sttm-lmms check`", ""),
    "attn_implementation=flash_attention_2": (
        r"pip install .sttm-lmms\[flash\]., or leave attn_impl",
        "",
    ),
    "load_in_4bit=True": (r"pip install 'sttm-lmms\[quantize\]', or leave load_in_4bit out", ""),
    "": ("did you mean lmms-lab/LLaVA-Video-7B-Qwen2-Video-Only", "lmms-lab/LLaVA-Video-7B-Qwen2-VideoOnly"),
    "budgt=0.5": ("unknown argument 'budgt'. Did you mean 'budget'", ""),
    "budget=5": (r"budget=5.0 is out of range; it must be in \(0.0, 1.0\]", ""),
}


@pytest.mark.parametrize("case", CASES)
def test_sttm_lmms_eval(bare, checkpoints, monkeypatch, capsys, case):
    message, name = CASES[case]
    monkeypatch.setattr(harness, "run_lmms_eval", lambda args: pytest.fail("lmms-eval was started"))
    arguments = [f"pretrained={name or checkpoints['llava_video']}"]
    arguments += [case] if case else []
    arguments += [] if "budg" in case else ["method=none"]
    with pytest.raises(SystemExit) as stopped:
        main(["eval", "--model", "sttm_llava_video", "--model_args", ",".join(arguments), "--tasks", "vnbench"])
    assert stopped.value.code == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.match(f"sttm-lmms: .*{message}", last), last


def test_runs_that_can_work_and_other_models_pass(checkpoints, monkeypatch):
    started = []
    monkeypatch.setattr(harness, "run_lmms_eval", started.append)
    given = ["--model_args", f"pretrained={checkpoints['qwen2_vl']},budget=0.5", "--device", "cpu"]
    with pytest.raises(SystemExit) as stopped:
        main(["eval", "--model", "sttm_qwen2_vl", *given])
    assert not stopped.value.code
    assert len(started) == 1
    check_arguments("llava_vid", "pretrained=anything,nonsense=1", {})


def test_the_plain_api_says_the_same(bare, checkpoints):
    with pytest.raises(requirements.STTMError, match=r"device=cuda:1: .*say device=cpu"):
        load_pretrained(checkpoints["llava_video"], device_map="cuda:1")
    with pytest.raises(requirements.STTMError, match="needs the package flash-attn"):
        load_pretrained(checkpoints["llava_video"], attn_implementation="flash_attention_2")


def test_a_gpu_beyond_the_last(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    requirements.check_device("cuda:1")
    with pytest.raises(requirements.STTMError, match="device=cuda:2: this machine has 2 GPUs, cuda:0 to cuda:1"):
        requirements.check_device("cuda:2")
