"""Video token reduction inside of stock vLLM: subclasses of its models, registered through its
plugin entry point.

vLLM counts the tokens of a video before it has seen it, so only methods that know their count
beforehand can run here (:meth:`~sttm_lmms.methods.base.Method.count`). The tokens that are kept
have the rotary positions of the full prompt; they travel as extra channels behind the embeddings
(``channels.py``) and are put in their columns by ``positions.py``.

vLLM loads every plugin that is installed, in each of its processes. This one does nothing unless
the environment variable ``STTM_VLLM`` is 1; ``sttm-lmms serve`` sets it.
"""

from __future__ import annotations

import os

SWITCH = "STTM_VLLM"
"""Environment variable that turns the plugin on: vLLM gives its plugins no other way to be asked
for."""

VERSIONS = ((0, 32), (0, 33))
"""Minor versions of vLLM whose interfaces this was written for."""

ARCHITECTURES = {
    "Qwen2VLForConditionalGeneration": "qwen:Qwen2VLForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration": "qwen:Qwen2_5_VLForConditionalGeneration",
    "Qwen3VLForConditionalGeneration": "qwen:Qwen3VLForConditionalGeneration",
    "Qwen3VLMoeForConditionalGeneration": "qwen:Qwen3VLMoeForConditionalGeneration",
    "Qwen3_5ForConditionalGeneration": "qwen:Qwen3_5ForConditionalGeneration",
    "Qwen3_5MoeForConditionalGeneration": "qwen:Qwen3_5MoeForConditionalGeneration",
    "LlavaOnevisionForConditionalGeneration": "llava:LlavaOnevisionForConditionalGeneration",
}
"""vLLM's name of an architecture -> our class. The names are vLLM's own because its cache settings,
drafters and configuration go by name."""


def version_problem(version: str) -> str | None:
    """Why this version of vLLM is refused, None if it is not."""
    found = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if found in VERSIONS:
        return None
    known = " and ".join(".".join(map(str, known)) for known in VERSIONS)
    return f"sttm-lmms knows vLLM {known}, not {version}: install one of these"


def register() -> None:
    """What the entry point ``vllm.general_plugins`` calls in each of vLLM's processes.

    Raises:
        RuntimeError: the plugin was asked for and this version of vLLM is not known.
    """
    if os.environ.get(SWITCH) != "1":
        return
    import vllm
    from vllm import ModelRegistry

    if (problem := version_problem(vllm.__version__)) is not None:
        raise RuntimeError(f"{problem}, or unset {SWITCH}")
    for name, target in ARCHITECTURES.items():
        ModelRegistry.register_model(name, f"{__name__}.{target}")  # a string: imported when the model is chosen
