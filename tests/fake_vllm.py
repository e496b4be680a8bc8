"""A stand-in for the package vllm: its ``LLM.generate`` over prompt embeddings, with transformers
behind it.

Prompts with frames get their placeholders and no thought.

It holds vLLM's promises that this package relies on: answers in the order of the prompts, new token
ids with the one that ended them, a prefix cache of whole blocks that is found by the bytes of the
embeddings. It refuses what vLLM does.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from sttm_lmms.serving.vllm_plugin.reduction import method_of, reserved

BLOCK = 16


@dataclass
class SamplingParams:
    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    min_tokens: int = 0
    repetition_penalty: float = 1.0
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    detokenize: bool = True


class LLM:
    """``calls`` holds the prompts and parameters of each call."""

    opened: ModuleType

    def __init__(self, model: str, *, dtype: str, enable_prompt_embeds: bool = False, **settings: Any) -> None:
        self.settings = {"model": model, "dtype": dtype, **settings}
        self.calls: list[tuple[list[dict[str, Any]], list[SamplingParams]]] = []
        self._blocks: set[bytes] = set()
        type(self).opened.llms.append(self)
        if not enable_prompt_embeds:
            return  # it sees itself: see _expanded
        self._decoder = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        self.model_config = SimpleNamespace(get_vocab_size=lambda: self._decoder.config.vocab_size)

    def generate(self, prompts: list[dict[str, Any]], params: list[SamplingParams], *, use_tqdm: bool) -> list[Any]:
        self.calls.append((prompts, params))
        if "prompt_token_ids" in prompts[0] and "prompt_embeds" not in prompts[0]:
            return [self._expanded(prompt) for prompt in prompts]
        return [self._answer(prompt, param) for prompt, param in zip(prompts, params, strict=True)]

    def _answer(self, prompt: dict[str, Any], params: SamplingParams) -> Any:
        embeds = prompt["prompt_embeds"]
        assert embeds.ndim == 2
        assert embeds.device.type == "cpu"
        if params.repetition_penalty != 1.0:  # vLLM takes leftovers of earlier requests for the ids of the prompt
            assert len(prompt["prompt_token_ids"]) == len(prompt["prompt_is_token_ids"]) == len(embeds)
            assert not any(prompt["prompt_is_token_ids"])
        if params.stop:
            assert params.detokenize
        sampled = {"temperature": params.temperature, "top_p": params.top_p, "top_k": params.top_k or None}
        (ids,) = self._decoder.generate(
            inputs_embeds=embeds[None],
            attention_mask=torch.ones(1, len(embeds)),
            max_new_tokens=params.max_tokens,
            min_new_tokens=params.min_tokens or None,
            eos_token_id=params.stop_token_ids,
            pad_token_id=params.stop_token_ids[0],
            repetition_penalty=params.repetition_penalty,
            do_sample=params.temperature > 0,
            **(sampled if params.temperature > 0 else {}),
            **({"stop_strings": params.stop, "tokenizer": self._tokenizer} if params.stop else {}),
        )
        return SimpleNamespace(
            outputs=[SimpleNamespace(token_ids=ids.tolist())], num_cached_tokens=self._cached(embeds)
        )

    def _expanded(self, prompt: dict[str, Any]) -> Any:
        """A video's placeholder repeated as often as our plugin tells vLLM, and an answer that is
        always the same."""
        config = AutoConfig.from_pretrained(self.settings["model"])
        method = method_of(self.settings["hf_overrides"]["sttm"])
        videos = iter(prompt["multi_modal_data"]["video"])
        ids: list[int] = []
        for token in prompt["prompt_token_ids"]:
            times = 1
            if token == config.video_token_id:
                frames, _ = next(videos)
                t, h, w = frames.shape[:3]
                times = reserved(method, (-(-t // 2), h // 28, w // 28))
            ids += [token] * times
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=[5, 6])], num_cached_tokens=0, prompt_token_ids=ids)

    def _cached(self, embeds: torch.Tensor) -> int:
        if not self.settings["enable_prefix_caching"]:
            return 0
        digest, found, missed = hashlib.sha256(), 0, False
        for start in range(0, len(embeds) // BLOCK * BLOCK, BLOCK):
            digest.update(embeds[start : start + BLOCK].numpy().tobytes())
            missed = missed or digest.digest() not in self._blocks
            found += 0 if missed else BLOCK
            self._blocks.add(digest.digest())
        return min(found, len(embeds) - 1)


def install(monkeypatch: pytest.MonkeyPatch, version: str = "0.32.0") -> ModuleType:
    """Make it the package ``vllm`` of this process; ``llms`` lists what was opened."""
    module: Any = ModuleType("vllm")
    opened: Any = type("FakeLLM", (LLM,), {"opened": module})
    module.__version__, module.LLM, module.SamplingParams, module.llms = version, opened, SamplingParams, []
    monkeypatch.setitem(sys.modules, "vllm", module)
    return module
