"""All that touches vLLM: opening it and asking it; as a script, the same in a Python environment of vLLM's own.

Imports nothing of this package, because a script run by another environment's Python finds only what is there: vLLM,
torch and safetensors.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

TESTED = (0, 32)
"""The minor range of vLLM that this was written for and tested with: prompt embeddings are a young part of it."""

Prompt = tuple[Any, Any, Mapping[str, Any]]
"""Embeddings ``[P, C]`` that many prompts share, embeddings ``[Q, C]`` behind them, fields of ``SamplingParams``."""
Reply = tuple[list[int], int]
"""New token ids (with the one that ended them), and how many tokens of the prompt were in the prefix cache."""


def version_problem(version: str) -> str | None:
    """Why this version of vLLM is refused, None if it is not."""
    found = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if found == TESTED:
        return None
    low, high = f"{TESTED[0]}.{TESTED[1]}", f"{TESTED[0]}.{TESTED[1] + 1}"
    return (
        f"vLLM {version} is not known: prompt embeddings were tested with {low}.x alone; "
        f"pip install 'vllm>={low},<{high}'"
    )


def open_llm(settings: Mapping[str, Any]) -> tuple[Any, str]:
    """A ``vllm.LLM`` and vLLM's version. Raises ``RuntimeError`` for a version that is not known."""
    import vllm

    version = str(vllm.__version__)
    if (problem := version_problem(version)) is not None:
        raise RuntimeError(problem)
    return vllm.LLM(**settings), version


def ask(llm: Any, prompts: Sequence[Prompt]) -> list[Reply]:
    """Answers to all prompts, in their order; vLLM batches them as it likes.

    The shared embeddings are copied as they are, so that the prefix cache, which hashes bytes, finds them again.
    """
    import torch
    from vllm import SamplingParams

    inputs = []
    for shared, own, sampling in prompts:
        embeds = torch.cat((shared, own))
        prompt: dict[str, Any] = {"prompt_embeds": embeds}
        if sampling.get("repetition_penalty", 1.0) != 1.0:
            # The penalty looks at the ids of the prompt, which embeddings do not have, and finds what an earlier
            # request left there. An id that no answer can hold keeps it on the new tokens.
            prompt["prompt_token_ids"] = [_last_id(llm)] * len(embeds)
            prompt["prompt_is_token_ids"] = [False] * len(embeds)
        inputs.append(prompt)
    outputs = llm.generate(inputs, [SamplingParams(**sampling) for _, _, sampling in prompts], use_tqdm=False)
    return [(list(output.outputs[0].token_ids), int(output.num_cached_tokens or 0)) for output in outputs]


def _last_id(llm: Any) -> int:
    """The last row of the embedding: checkpoints pad it, or keep a visual token there."""
    return int(llm.model_config.get_vocab_size()) - 1


def _serve(descriptor: int) -> None:
    """Answer over a pipe until it is closed. Messages: settings, then packs of prompts (see ``connection.py``)."""
    from multiprocessing.connection import Connection

    from safetensors.torch import load

    pipe = Connection(descriptor)
    try:
        llm, version = open_llm(pipe.recv())
        pipe.send({"version": version})
        while True:
            pack = pipe.recv()
            tensors = load(pack["tensors"])
            prompts = [(tensors[shared], tensors[own], sampling) for shared, own, sampling in pack["prompts"]]
            pipe.send({"replies": ask(llm, prompts)})
    except EOFError:
        return
    except Exception as error:
        pipe.send({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
