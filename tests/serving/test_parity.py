"""The answers of vLLM itself beside those of our own engine, on a CPU in float32
(``make test-vllm``)."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file, save_file

from sttm_lmms import GenerationSettings, Request, STTMConfig, VideoSettings, load_pretrained
from sttm_lmms.benchmarks.annotations import load_questions
from sttm_lmms.benchmarks.mini import write_benchmark
from sttm_lmms.benchmarks.prompt import build_prompt
from sttm_lmms.demo import shipped
from sttm_lmms.methods import get_method
from sttm_lmms.runtime import Engine
from sttm_lmms.serving.connection import open_vllm
from sttm_lmms.serving.decoder_cache import cached_decoder
from sttm_lmms.serving.embeds import EmbedsEngine
from sttm_lmms.testing.tiny import TinySizes, build_tiny_checkpoint

VIDEOS, QUESTIONS = 5, 4
METHODS = {
    "all tokens": None,
    "sttm 50%": STTMConfig(budget=0.5, start_layer=0),
    "sttm 30%": STTMConfig(budget=0.3, start_layer=0),
    "random 30%": get_method("random")(budget=0.3, start_layer=0),
}
LONG = {
    "plain": {},
    "stop texts": {"until": ("e", "?", "_")},
    "penalty": {"repetition_penalty": 1.4},
    "at least": {"min_new_tokens": 30},
}


pytestmark = pytest.mark.skipif(
    find_spec("vllm") is None, reason="vLLM is compared by `make test-vllm`, which makes an environment for it"
)


@pytest.fixture(scope="module")
def requests(tmp_path_factory):
    """Four questions about each of five generated videos."""
    root = tmp_path_factory.mktemp("data")
    questions = load_questions(write_benchmark(root, videos=VIDEOS), "vnbench")
    asked = [
        Request(
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "video", "video": str(root / "vnbench" / "videos" / f"{question.video_id}.mp4")},
                        {"type": "text", "text": build_prompt(question.question, question.options)},
                    ],
                }
            ],
            GenerationSettings(max_new_tokens=16),
            video=VideoSettings(fps=1, max_frames=16),
        )
        for question in questions
    ]
    assert len(asked) == VIDEOS * QUESTIONS
    return asked


def engines(checkpoint, tmp_path):
    """Our engine, and one with vLLM's decoder."""
    settings = {
        "model": str(cached_decoder(checkpoint, tmp_path)),
        "dtype": "float32",
        "enable_prompt_embeds": True,
        "enable_prefix_caching": True,
        "enforce_eager": True,
        "max_model_len": 4096,
        "gpu_memory_utilization": 0.1,
    }
    llm = open_vllm(settings)
    ours = Engine(*load_pretrained(checkpoint, dtype=torch.float32), on_error="raise")
    seeing = load_pretrained(checkpoint, dtype=torch.float32, with_decoder=False)
    return ours, EmbedsEngine(*seeing, llm=llm, on_error="raise")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    ours, theirs = engines(shipped("llava_video"), tmp_path_factory.mktemp("decoders"))
    yield ours, theirs
    theirs.close()


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """Random weights say longer things than a letter."""
    root = tmp_path_factory.mktemp("untrained")
    sizes = TinySizes(hidden_size=128)  # vLLM's attention on a CPU wants heads of at least 32 channels
    checkpoint = build_tiny_checkpoint(root / "checkpoint", "llava_onevision", sizes=sizes)
    # As in real checkpoints, the last id, which stands for the prompt where repetition is
    # penalised, is never said.
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["lm_head.weight"][-1] = 0
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    ours, theirs = engines(checkpoint, root)
    yield ours, theirs
    theirs.close()


def changed(requests, **changes):
    return [replace(request, **changes) for request in requests]


@pytest.mark.parametrize("name", METHODS)
def test_every_answer_is_equal(name, requests, trained):
    ours, theirs = trained
    asked = changed(requests, config=METHODS[name])
    expected, found = ours.generate(asked), theirs.generate(asked)
    assert [answer.text for answer in found] == [answer.text for answer in expected]
    assert len({answer.text for answer in found}) > 1
    for mine, other in zip(expected, found, strict=True):
        assert (mine.visual_tokens, mine.kept_tokens) == (other.visual_tokens, other.kept_tokens)
        assert (mine.input_tokens, mine.output_tokens) == (other.input_tokens, other.output_tokens)
    assert [answer.reused for answer in found] == [number % QUESTIONS > 0 for number in range(len(found))]


@pytest.mark.parametrize("name", LONG)
def test_long_answers_are_equal(name, requests, untrained):
    ours, theirs = untrained
    generation = GenerationSettings.of(max_new_tokens=40, **LONG[name])
    asked = changed(requests[:12], config=METHODS["sttm 50%"], generation=generation)
    expected, found = ours.generate(asked), theirs.generate(asked)
    assert [answer.text for answer in found] == [answer.text for answer in expected]
    assert [answer.output_tokens for answer in found] == [answer.output_tokens for answer in expected]
    assert max(answer.output_tokens for answer in found) > 8
