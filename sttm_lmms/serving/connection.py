"""All that touches vLLM: opening it and asking it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

from sttm_lmms.errors import STTMError
from sttm_lmms.serving.vllm_plugin import SWITCH, version_problem

Prompt = tuple[Mapping[str, Any], Mapping[str, Any]]
"""A prompt as vLLM takes it, and fields of ``SamplingParams``."""


@dataclass(frozen=True)
class Reply:
    """What vLLM says to one prompt.

    Attributes:
        new: token ids, with the one that ended them.
        prompt: the prompt's ids as the decoder read them; 0 for each embedding.
        cached: tokens of the prompt that were in the prefix cache.
    """

    new: Sequence[int]
    prompt: Sequence[int]
    cached: int


class LLM(Protocol):
    """What the engine asks of vLLM."""

    version: str

    def ask(self, prompts: Sequence[Prompt]) -> list[Reply]:
        """The reply to each prompt, in order."""

    def close(self) -> None:
        """Let go of the device's memory."""


def check_vllm() -> None:
    """Raise ``STTMError`` if vLLM is not installed."""
    if "vllm" not in sys.modules and find_spec("vllm") is None:
        raise STTMError("vLLM is not installed: pip install 'sttm-lmms[vllm]'")


def open_vllm(settings: Mapping[str, Any]) -> LLM:
    """Start vLLM, with our plugin where ``settings``, those of ``vllm.LLM``, ask for a reduction.

    Raises:
        STTMError: vLLM is not installed, of an unknown version, or did not start.
    """
    check_vllm()
    import vllm

    if (problem := version_problem(str(vllm.__version__))) is not None:
        raise STTMError(problem)
    if "sttm" in settings.get("hf_overrides", {}):
        os.environ[SWITCH] = "1"  # vLLM's processes inherit it
    try:
        return _VLLM(vllm.LLM(**settings), str(vllm.__version__))
    except RuntimeError as error:
        raise STTMError(f"vLLM did not start: {error}") from error


class _VLLM:
    def __init__(self, llm: Any, version: str) -> None:
        self._llm, self.version = llm, version

    def ask(self, prompts: Sequence[Prompt]) -> list[Reply]:
        """All prompts in one call; vLLM batches them as it likes."""
        from vllm import SamplingParams

        inputs = []
        for given, sampling in prompts:
            prompt = dict(given)
            if "prompt_embeds" in prompt and sampling.get("repetition_penalty", 1.0) != 1.0:
                # The penalty looks at the ids of the prompt, which embeddings do not have, and
                # finds what an earlier request left there. An id that no answer can hold keeps it
                # on the new tokens: the last row of the embedding, because checkpoints pad it, or
                # keep a visual token there.
                length, last = len(prompt["prompt_embeds"]), int(self._llm.model_config.get_vocab_size()) - 1
                prompt |= {"prompt_token_ids": [last] * length, "prompt_is_token_ids": [False] * length}
            inputs.append(prompt)
        outputs = self._llm.generate(inputs, [SamplingParams(**sampling) for _, sampling in prompts], use_tqdm=False)
        return [
            Reply(
                list(output.outputs[0].token_ids),
                [0] * len(prompt["prompt_embeds"]) if "prompt_embeds" in prompt else output.prompt_token_ids,
                int(output.num_cached_tokens or 0),
            )
            for prompt, output in zip(inputs, outputs, strict=True)
        ]

    def close(self) -> None:
        self._llm = None
