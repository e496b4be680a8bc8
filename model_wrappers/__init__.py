"""Wrappers for lmms-eval. This module only names them: lmms-eval imports it in every run, of any
model."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest

WRAPPERS = {
    "sttm_llava_video": "models.LlavaVideo",
    "sttm_llava_onevision": "models.LlavaOneVision",
    "sttm_qwen2_vl": "models.Qwen2VL",
    "sttm_qwen2_5_vl": "models.Qwen25VL",
    "sttm_qwen3_vl": "models.Qwen3VL",
    "sttm_qwen3_5": "models.Qwen35",
    "sttm_glm4v": "models.Glm4v",
    "sttm_internvl": "models.InternVL",
    "sttm_smolvlm": "models.SmolVLM",
    "sttm_vllm": "vllm.VLLM",
}
"""Model id for ``--model`` -> module and class of the chat wrapper; the simple one is called
``Simple<class>``."""


def manifests() -> list[ModelManifest]:
    """What the entry point ``lmms_eval.models`` gives to lmms-eval.

    Every model has a chat wrapper, which lmms-eval prefers, and a simple one for the tasks that
    chat models cannot run (output type ``multiple_choice`` or ``loglikelihood``):
    ``lmms-eval --force_simple``.
    """
    from lmms_eval.models.registry_v2 import ModelManifest

    found = []
    for model_id, target in WRAPPERS.items():
        module, name = target.split(".")
        path = f"{__name__}.{module}"
        found.append(ModelManifest(model_id, f"{path}.Simple{name}", f"{path}.{name}"))
    return found
