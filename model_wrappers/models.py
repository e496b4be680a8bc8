"""``lmms-eval --model sttm_llava_video`` and the other families, each with a twin for ``--force_simple``.

A twin is for the tasks that chat models cannot run (output type ``multiple_choice`` or ``loglikelihood``).
"""

from __future__ import annotations

from typing import ClassVar

from sttm_lmms.model_wrappers.base import STTMWrapper


class LlavaVideo(STTMWrapper):
    """LLaVA-Video (Qwen2), original lmms-lab or Hugging Face layout."""

    family = "llava_video"
    stock_wrappers: ClassVar[tuple[str, ...]] = ("llava_vid",)


class LlavaOneVision(STTMWrapper):
    """LLaVA-OneVision (Qwen2), original lmms-lab or llava-hf layout."""

    family = "llava_onevision"
    stock_wrappers: ClassVar[tuple[str, ...]] = ("llava_onevision", "llava_hf")


class Qwen2VL(STTMWrapper):
    """Qwen2-VL, frames sampled and resized as by qwen-vl-utils."""

    family = "qwen2_vl"
    stock_wrappers: ClassVar[tuple[str, ...]] = ("qwen2_vl",)
    max_new_tokens = 128


class Qwen25VL(STTMWrapper):
    """Qwen2.5-VL, frames sampled and resized as by qwen-vl-utils."""

    family = "qwen2_5_vl"
    stock_wrappers: ClassVar[tuple[str, ...]] = ("qwen2_5_vl",)
    max_new_tokens = 128


class Qwen3VL(STTMWrapper):
    """Qwen3-VL, frames sampled and resized as by qwen-vl-utils; reduced in front of layer 3 unless told otherwise."""

    family = "qwen3_vl"
    stock_wrappers: ClassVar[tuple[str, ...]] = ("qwen3_vl",)
    max_new_tokens = 128


class InternVL(STTMWrapper):
    """InternVL3 and InternVL3.5 in the Hugging Face layout, one tile a frame."""

    family = "internvl"
    stock_wrappers: ClassVar[tuple[str, ...]] = ("internvl_hf", "internvl3_5", "internvl3")


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


class SimpleInternVL(InternVL):
    is_simple = True
