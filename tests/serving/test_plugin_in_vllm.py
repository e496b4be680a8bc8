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

from sttm_lmms import GenerationSettings, Request, VideoSettings, get_method, load_pretrained
from sttm_lmms.benchmarks.annotations import load_questions
from sttm_lmms.benchmarks.mini import write_benchmark
from sttm_lmms.benchmarks.prompt import build_prompt
from sttm_lmms.demo import shipped
from sttm_lmms.runtime import Engine
from sttm_lmms.serving.vllm_plugin import SWITCH
from sttm_lmms.testing.tiny import TinySizes, build_tiny_checkpoint

pytestmark = pytest.mark.skipif(
    find_spec("vllm") is None, reason="vLLM is compared by `make test-vllm`, which makes an environment for it"
)

FAMILIES = ("trained", "qwen2_5_vl", "qwen3_vl", "llava_onevision")
NEW_TOKENS = 24


@dataclass
class Side:
    """Our engine, the same checkpoint's processor, and what vLLM is started with."""

    engine: Engine
    checkpoint: Path
    family: str
    video: VideoSettings

    def prompt(self, question: Any, files: list[str]) -> tuple[Request, dict[str, Any]]:
        """The same question for both."""
        text = build_prompt(question.question, question.options)
        visuals = [{"type": "video", "video": file} for file in files]
        request = Request(
            [{"role": "user", "content": [*visuals, {"type": "text", "text": text}]}],
            GenerationSettings(max_new_tokens=NEW_TOKENS),
            video=self.video,
        )
        message = {"role": "user", "content": [*({"type": "video"} for _ in files), {"type": "text", "text": text}]}
        written = self.engine.processor.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        videos = [self._video(file) for file in files]
        return request, {"prompt": written, "multi_modal_data": {"video": videos}}

    def _video(self, file: str) -> Any:
        video = self.engine.family.read_video(file, self.video)
        if self.family not in ("qwen2_5_vl", "qwen3_vl"):
            return video.frames
        about = {
            "fps": video.fps,
            "total_num_frames": max(video.indices) + 1,
            "frames_indices": [int(index) for index in video.indices],
            "do_sample_frames": False,
            "duration": len(video.frames) / video.sample_fps,
            "video_backend": "pyav",
        }
        return video.frames, about


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


def open_vllm(side: Side, settings: dict[str, Any] | None, **more: Any) -> Any:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ[SWITCH] = "1"
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from vllm import LLM

    ours = {} if settings is None else {"video_pruning_rate": 0.5, "hf_overrides": {"sttm": settings}}
    as_given = {} if side.family.startswith("llava") else {"mm_processor_kwargs": {"do_resize": False}}
    return LLM(
        model=str(side.checkpoint),
        dtype="float32",
        enforce_eager=True,
        max_model_len=4096,
        max_num_seqs=4,
        gpu_memory_utilization=0.1,
        limit_mm_per_prompt={"video": 2, "image": 0},
        **ours,
        **as_given,
        **more,
    )


def said(side: Side, llm: Any, prompts: list[dict[str, Any]]) -> list[str]:
    from vllm import SamplingParams

    outputs = llm.generate(prompts, SamplingParams(max_tokens=NEW_TOKENS, temperature=0.0), use_tqdm=False)
    decode = side.engine.processor.tokenizer.decode
    return [decode(output.outputs[0].token_ids, skip_special_tokens=True).strip() for output in outputs]


@pytest.mark.parametrize(
    ("settings", "more"),
    [
        pytest.param({"method": "sttm", "budget": 0.5}, {}, id="sttm 50%"),
        pytest.param({"method": "sttm", "budget": 0.3}, {"max_num_batched_tokens": 64}, id="sttm 30%, chunks of 64"),
        pytest.param({"method": "sttm", "budget": 1.0}, {}, id="all tokens on the pruning path"),
        pytest.param({"method": "random", "budget": 0.3}, {}, id="random 30%"),
    ],
)
def test_every_answer_is_equal(settings, more, side, questions):
    floor = {"floor": "join"} if settings["method"] == "sttm" else {}
    config = get_method(settings["method"])(budget=settings["budget"], start_layer=0, **floor)
    asked = [side.prompt(question, [file]) for question, file in questions]
    asked += [side.prompt(question, [file, questions[0][1]]) for question, file in questions[4:6]]

    expected = [
        answer.text.strip()
        for answer in side.engine.generate([replace(request, config=config) for request, _ in asked])
    ]
    llm = open_vllm(side, settings, **more)
    prompts = [prompt for _, prompt in asked]
    assert said(side, llm, prompts) == expected
    assert said(side, llm, prompts) == expected, "out of the prefix cache"
    assert len(set(expected)) > 1
