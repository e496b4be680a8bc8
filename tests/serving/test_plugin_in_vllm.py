"""Answers of vLLM with our plugin beside those of our own engine, on a CPU (``make test-vllm``).

Runs in an environment that holds vLLM and this package: one engine a family, in this process.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sttm_lmms import GenerationSettings, Request, STTMConfig, VideoSettings, get_method, load_pretrained
from sttm_lmms.benchmarks.annotations import load_questions
from sttm_lmms.benchmarks.mini import write_benchmark
from sttm_lmms.benchmarks.prompt import build_prompt
from sttm_lmms.demo import shipped
from sttm_lmms.families.checkpoint import read_headers
from sttm_lmms.runtime import Answer, Engine
from sttm_lmms.serving.connection import open_vllm
from sttm_lmms.serving.frames import FramesEngine, plugin_settings
from sttm_lmms.serving.vllm_plugin import ARCHITECTURES, SWITCH, register
from sttm_lmms.testing.tiny import TinySizes, build_tiny_checkpoint

pytestmark = pytest.mark.skipif(
    find_spec("vllm") is None, reason="vLLM is compared by `make test-vllm`, which makes an environment for it"
)

FAMILIES = ("trained", "qwen2_5_vl", "qwen3_vl", "llava_onevision")
NEW_TOKENS = 24
FIRST: Any = {"start_layer": 0, "floor": "join"}  # what vLLM needs


@dataclass
class Side:
    """Our engine, and what vLLM is started with."""

    engine: Engine
    checkpoint: Path
    family: str
    video: VideoSettings

    def request(self, question: Any, files: list[str]) -> Request:
        text = {"type": "text", "text": build_prompt(question.question, question.options)}
        visuals = [{"type": "video", "video": file} for file in files]
        generation = GenerationSettings(max_new_tokens=NEW_TOKENS)
        return Request([{"role": "user", "content": [*visuals, text]}], generation, video=self.video)


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """Four questions about each of three videos, with their files."""
    root = tmp_path_factory.mktemp("data")
    found = load_questions(write_benchmark(root, videos=3), "vnbench")
    return [(question, str(root / "vnbench" / "videos" / f"{question.video_id}.mp4")) for question in found]


@pytest.fixture(scope="module", params=FAMILIES)
def side(request, tmp_path_factory):
    limits = VideoSettings(fps=1, max_frames=16, min_pixels=37632, max_pixels=39200)
    if request.param == "trained":
        model, processor = load_pretrained(shipped("qwen2_vl"), dtype=torch.float32)
        return Side(Engine(model, processor, on_error="raise"), shipped("qwen2_vl"), "qwen2_vl", limits)
    folder = tmp_path_factory.mktemp(request.param)
    sizes = TinySizes(hidden_size=128)  # vLLM's attention on a CPU wants heads of at least 32 channels
    checkpoint = build_tiny_checkpoint(folder / "checkpoint", request.param, "hf", sizes=sizes)
    _speak(checkpoint / "model.safetensors")
    model, processor = load_pretrained(checkpoint, dtype=torch.float32)
    llava = request.param.startswith("llava")
    engine = Engine(model, processor, on_error="raise", newline="one_token" if llava else None)
    return Side(engine, checkpoint, request.param, VideoSettings(fps=1, max_frames=16) if llava else limits)


def _speak(file: Path) -> None:
    """Scale random weights so that answers depend on the prompt; the tower's name as vLLM 0.32
    knows it."""
    tensors = {}
    for name, tensor in load_file(file).items():
        decoder = "visual" not in name and "vision" not in name
        scaled = decoder and tensor.ndim == 2 and ("layers" in name or "embed_tokens" in name)
        name = name.replace("vision_tower.encoder", "vision_tower.vision_model.encoder")
        name = name.replace("vision_tower.embeddings", "vision_tower.vision_model.embeddings")
        name = name.replace("vision_tower.post_layernorm", "vision_tower.vision_model.post_layernorm")
        tensors[name] = tensor * 6 if scaled else tensor
    save_file(tensors, file, metadata={"format": "pt"})


def served(side: Side, config: Any, **more: Any) -> FramesEngine:
    """vLLM in this process, asked as lmms-eval asks it."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    llm = open_vllm(
        {
            "model": str(side.checkpoint),
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": 4096,
            "max_num_seqs": 4,
            "gpu_memory_utilization": 0.1,
            "limit_mm_per_prompt": {"video": 2, "image": 1},
            **plugin_settings(config),
            **more,
        }
    )
    newline = "one_token" if side.family.startswith("llava") else None
    empty = load_pretrained(side.checkpoint, dtype=torch.float32, headers=read_headers(side.checkpoint))
    return FramesEngine(*empty, config, llm=llm, on_error="raise", newline=newline)


def told(answers: list[Answer]) -> list[Any]:
    """Text and tokens of each answer."""
    return [
        (answer.text, answer.visual_tokens, answer.kept_tokens, answer.input_tokens, answer.output_tokens)
        for answer in answers
    ]


@pytest.mark.parametrize(
    ("config", "more"),
    [
        pytest.param(STTMConfig(budget=0.5, **FIRST), {}, id="sttm 50%"),
        pytest.param(STTMConfig(budget=0.3, **FIRST), {"max_num_batched_tokens": 64}, id="sttm 30%, chunks of 64"),
        pytest.param(STTMConfig(budget=1.0, **FIRST), {}, id="all tokens on the pruning path"),
        pytest.param(get_method("random")(budget=0.3, start_layer=0), {}, id="random 30%"),
        pytest.param(None, {}, id="plain vLLM"),
    ],
)
def test_every_answer_and_count_is_equal(config, more, side, questions):
    asked = [side.request(question, [file]) for question, file in questions]
    asked += [side.request(question, [file, questions[0][1]]) for question, file in questions[4:6]]
    expected = told(side.engine.generate([replace(request, config=config) for request in asked]))
    vllm = served(side, config, **more)
    assert told(vllm.generate(asked)) == expected
    assert told(vllm.generate(asked)) == expected, "out of the prefix cache"
    assert len({text for text, *_ in expected}) > 1


def test_without_the_switch_vllm_keeps_its_own_classes(monkeypatch):
    from vllm import ModelRegistry

    monkeypatch.setattr(ModelRegistry, "models", dict(ModelRegistry.models))
    known = dict(ModelRegistry.models)
    monkeypatch.setenv(SWITCH, "0")
    register()
    assert all(ModelRegistry.models[name] is model for name, model in known.items())
    assert len(ModelRegistry.models) == len(known)
    monkeypatch.setenv(SWITCH, "1")
    register()
    assert all(ModelRegistry.models[name] is not known[name] for name in ARCHITECTURES)
