"""The recorded cases of ``tests/golden/methods``: outputs of the published code for every method of
the comparison."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import Qwen2ForCausalLM

from sttm_lmms.methods import get_method
from sttm_lmms.methods.base import Method
from sttm_lmms.types import Tokens, VideoSpan

FOLDER = Path(__file__).parents[1] / "golden" / "methods"
CASES: dict[str, dict[str, Any]] = json.loads((FOLDER / "cases.json").read_text())["cases"]
BARE = [name for name, case in CASES.items() if case["case"]["kind"] == "bare"]
LLM = [name for name, case in CASES.items() if case["case"]["kind"] == "llm" and case["case"]["method"] != "none"]
WORKS = [name for name in LLM if CASES[name]["status"] == "ok"]

NAMES = {
    "dycoke-stage1": "dycoke_stage1",
    "framefusion-merge": "framefusion_merge",
    "streamingllm": "streaming_llm",
    "pyrd": "pyramid",
    "dycoke_ttm": "dycoke_stage1",
    "quadtree": "octree",
    "tome_per_video": "tome",
    "tome_per_frame": "tome",
}
"""Methods and bare functions as the recordings name them -> our names, where they differ."""


@lru_cache
def tensors() -> dict[str, torch.Tensor]:
    return load_file(FOLDER / "cases.safetensors")


def tensor(case: str, field: str) -> torch.Tensor | None:
    """A recorded field, integers as int64; None where the case does not have it."""
    value = tensors().get(f"{case}/{field}")
    return value if value is None or value.is_floating_point() else value.long()


@lru_cache
def model(attention: str = "sdpa") -> Qwen2ForCausalLM:
    return Qwen2ForCausalLM.from_pretrained(FOLDER / "qwen2_tiny", attn_implementation=attention).eval()


def method(name: str) -> Method:
    """Our method with the settings of a case."""
    case = CASES[name]
    if case["case"]["kind"] == "llm":
        ours = case["case"]["method"]
        return get_method(NAMES.get(ours, ours)).published(**case["case"]["settings"])
    ours, settings = case["function"], dict(case["args"])
    if ours == "tome_per_frame":
        settings["sa_tome_ver"] = "frame"
    return get_method(NAMES.get(ours, ours)).published(**settings)


def bare_tokens(name: str) -> Tokens:
    """The input of a bare function."""
    args = CASES[name]["args"]
    return Tokens.of_grid(tensors()[f"input/{args['x']}"][: args["T"]].permute(0, 2, 3, 1))


def prompt(name: str) -> tuple[torch.Tensor, VideoSpan]:
    """``inputs_embeds`` ``[L, C]`` of an LLM case and where its video is."""
    case = CASES[name]["case"]
    video = tensors()[case["visual"]][: case["T"]]
    embed = model().model.embed_tokens
    with torch.no_grad():
        text = [embed(tensors()[f"input/{part}_ids"]) for part in ("sys", "inst")]
    return torch.cat((text[0], video.flatten(0, 2), text[1])), VideoSpan(len(text[0]), tuple(video.shape[:3]))
