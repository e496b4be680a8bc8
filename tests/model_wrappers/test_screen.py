"""A run that fails under lmms-eval ends in one sentence of ours, after its traceback and its grey
line."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch
from warm_ranks import warm_lmms_eval

from sttm_lmms.errors import OutOfMemoryError, STTMError
from sttm_lmms.families import requirements
from sttm_lmms.model_wrappers import load, screen
from sttm_lmms.model_wrappers.arguments import parse_arguments

NONE = {"pretrained": "some/model", "method": "none"}


def last_line(printed: str) -> str:
    return printed.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"device": "cuda"}, "device=cuda: "),
        ({"device": "cuda:3"}, "leave device out, say device=cpu"),
        ({"attn_implementation": "flash_attention_2"}, "pip install 'sttm-lmms[flash]'"),
    ],
)
def test_a_device_or_kernel_that_is_not_there(given, words, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(requirements, "find_spec", lambda name: None)
    with pytest.raises(STTMError, match="leave") as caught:
        load.place(parse_arguments({**NONE, **given}))
    assert words in str(caught.value)


def test_a_device_beyond_the_last(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(STTMError, match=r"this machine has 2 GPUs, cuda:0 to cuda:1"):
        requirements.check_device(torch.device("cuda:2"))
    requirements.check_device(torch.device("cuda:1"))


def test_flash_attention_on_a_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(requirements, "find_spec", lambda name: object())
    with pytest.raises(STTMError, match="needs a CUDA GPU"):
        requirements.check_attention("flash_attention_2", torch.device("cpu"))
    requirements.check_attention("sdpa")


def test_the_last_word_as_lmms_eval_logs():
    """lmms-eval's own way to end a run: everything is caught, a traceback and a log line are
    printed."""
    code = """
        import sys, traceback
        from loguru import logger
        from sttm_lmms.model_wrappers import screen
        logger.remove()
        logger.add(sys.stdout, level="INFO")
        screen.install(), screen.install()
        logger.patch(lambda record: record.update(name="lmms_eval.evaluator")).error("nothing of ours")
        try:
            raise ValueError("fps=0 is out of range; give more")
        except Exception as e:
            traceback.print_exc()
            logger.patch(lambda record: record.update(name="lmms_eval.__main__")).error(f"Error: {e}.")
        print("later on stdout", flush=False)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    lines = run.stdout.strip().splitlines()
    assert [line for line in lines if line.startswith("error: ")] == ["error: fps=0 is out of range; give more"]
    assert lines[-2:] == ["error: fps=0 is out of range; give more", "later on stdout"]


def test_a_caller_may_capture_the_sentences(capsys):
    with screen.capture_errors() as sentences:
        screen.print_error(ValueError("no"))
    assert sentences == ["no"]
    screen.print_error(ValueError("yes"))
    assert capsys.readouterr().err == "error: yes\n"


def test_out_of_memory_names_what_to_lower(data, checkpoints, monkeypatch):
    """The device is full in the middle of a run: the settings that are in force are named with
    their values."""
    from sttm_lmms.model_wrappers.models import LlavaVideo

    wrapper = LlavaVideo(
        pretrained=str(checkpoints["llava_video"]), budget=0.5, device="cpu", batch_size=4, keep=2, host_cache_gb=8
    )
    with pytest.raises(OutOfMemoryError) as caught, wrapper._running("Answering", []):
        raise torch.OutOfMemoryError("CUDA out of memory.")
    text = str(caught.value)
    for words in ("batch_size (now 4)", "keep (now 2;", "host_cache_gb (now 8)", "max_frames", "budget"):
        assert words in text
    with pytest.raises(RuntimeError, match="shapes"), wrapper._running("Answering", []):
        raise RuntimeError("shapes do not match")


@pytest.mark.slow
def test_plain_lmms_eval_ends_in_our_sentence(data, checkpoints, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    settings = f"pretrained={checkpoints['llava_video']},device=cuda,budget=0.5"
    run = warm_lmms_eval(data, tmp_path / "out", "--model", "sttm_llava_video", "--model_args", settings)
    assert run.results is None
    assert "Traceback" in run.printed
    assert last_line(run.printed).startswith("error: device=cuda: ")
