"""All that touches vLLM: opening it and asking it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Protocol

import torch

from sttm_lmms.errors import STTMError

TESTED = (0, 32)
"""The minor range of vLLM that this was written for and tested with: prompt embeddings are a young
part of it."""

Prompt = tuple[torch.Tensor, torch.Tensor, Mapping[str, Any]]
"""Embeddings ``[P, C]`` that many prompts share, embeddings ``[Q, C]`` behind them, fields of
``SamplingParams``."""
Reply = tuple[list[int], int]
"""New token ids (with the one that ended them), and how many tokens of the prompt were in the
prefix cache."""


class LLM(Protocol):
    """What the engine asks of vLLM."""

    version: str

    def ask(self, prompts: Sequence[Prompt]) -> list[Reply]:
        """New token ids of each prompt, in order, and the tokens of it that were in the prefix
        cache."""

    def close(self) -> None:
        """Let go of the device's memory."""


def check_vllm() -> None:
    """Raise ``STTMError`` if vLLM is not installed."""
    if "vllm" not in sys.modules and find_spec("vllm") is None:
        raise STTMError("vLLM is not installed: pip install 'sttm-lmms[vllm]'")


def check_version(version: str) -> None:
    """Raise ``STTMError`` for a version of vLLM that is not known."""
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) != TESTED:
        low, high = f"{TESTED[0]}.{TESTED[1]}", f"{TESTED[0]}.{TESTED[1] + 1}"
        raise STTMError(
            f"vLLM {version} is not known: prompt embeddings were tested with {low}.x alone; "
            f"pip install 'vllm>={low},<{high}'"
        )


def open_vllm(settings: Mapping[str, Any]) -> LLM:
    """Start vLLM. ``settings`` are those of ``vllm.LLM``.

    Raises:
        STTMError: vLLM is not installed, of an unknown version, or did not start.
    """
    check_vllm()
    import vllm

    check_version(str(vllm.__version__))
    try:
        return _VLLM(vllm.LLM(**settings), str(vllm.__version__))
    except RuntimeError as error:
        raise STTMError(f"vLLM did not start: {error}") from error


class _VLLM:
    def __init__(self, llm: Any, version: str) -> None:
        self._llm, self.version = llm, version

    def ask(self, prompts: Sequence[Prompt]) -> list[Reply]:
        """All prompts in one call; vLLM batches them as it likes.

        The shared embeddings are copied as they are, so that the prefix cache, which hashes bytes,
        finds them again.
        """
        from vllm import SamplingParams

        inputs = []
        for shared, own, sampling in prompts:
            prompt: dict[str, Any] = {"prompt_embeds": torch.cat((shared, own))}
            if sampling.get("repetition_penalty", 1.0) != 1.0:
                # The penalty looks at the ids of the prompt, which embeddings do not have, and
                # finds what an earlier request left there. An id that no answer can hold keeps it
                # on the new tokens: the last row of the embedding, because checkpoints pad it, or
                # keep a visual token there.
                length, last = len(prompt["prompt_embeds"]), int(self._llm.model_config.get_vocab_size()) - 1
                prompt |= {"prompt_token_ids": [last] * length, "prompt_is_token_ids": [False] * length}
            inputs.append(prompt)
        outputs = self._llm.generate(inputs, [SamplingParams(**sampling) for _, _, sampling in prompts], use_tqdm=False)
        return [(list(output.outputs[0].token_ids), int(output.num_cached_tokens or 0)) for output in outputs]

    def close(self) -> None:
        self._llm = None
