"""``lmms-eval --model sttm_llava_video`` and the other families, each with a twin for
``--force_simple``.

A twin is for the tasks that chat models cannot run (output type ``multiple_choice`` or
``loglikelihood``).
"""

from __future__ import annotations

from sttm_lmms.model_wrappers.base import STTMWrapper


class LlavaVideo(STTMWrapper):
    """LLaVA-Video (Qwen2), original lmms-lab or Hugging Face layout."""

    family = "llava_video"


class LlavaOneVision(STTMWrapper):
    """LLaVA-OneVision (Qwen2), original lmms-lab or llava-hf layout."""

    family = "llava_onevision"


class Qwen2VL(STTMWrapper):
    """Qwen2-VL, frames sampled and resized as by qwen-vl-utils."""

    family = "qwen2_vl"


class Qwen25VL(STTMWrapper):
    """Qwen2.5-VL, frames sampled and resized as by qwen-vl-utils."""

    family = "qwen2_5_vl"


class Qwen3VL(STTMWrapper):
    """Qwen3-VL, frames sampled and resized as by qwen-vl-utils; reduced in front of layer 3 unless
    told otherwise."""

    family = "qwen3_vl"


class Qwen35(STTMWrapper):
    """Qwen3.5 without thinking, frames as for Qwen3-VL; reduced in front of its first layer with
    attention, 3, unless told otherwise."""

    family = "qwen3_5"


class Glm4v(STTMWrapper):
    """GLM-4.1V, 4.5V and 4.6V, without thinking where their chat template allows that."""

    family = "glm4v"


class InternVL(STTMWrapper):
    """InternVL3 and InternVL3.5 in the Hugging Face layout, one tile a frame."""

    family = "internvl"


class SmolVLM(STTMWrapper):
    """SmolVLM2, one tile a frame and its time in front."""

    family = "smolvlm"


class SimpleLlavaVideo(LlavaVideo):
    is_simple = True


class SimpleLlavaOneVision(LlavaOneVision):
    is_simple = True


class SimpleQwen2VL(Qwen2VL):
    is_simple = True


class SimpleQwen25VL(Qwen25VL):
    is_simple = True


class SimpleQwen3VL(Qwen3VL):
    is_simple = True


class SimpleQwen35(Qwen35):
    is_simple = True


class SimpleGlm4v(Glm4v):
    is_simple = True


class SimpleInternVL(InternVL):
    is_simple = True


class SimpleSmolVLM(SmolVLM):
    is_simple = True
