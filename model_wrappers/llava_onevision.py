"""``lmms-eval --model sttm_llava_onevision``."""

from __future__ import annotations

from typing import ClassVar

from sttm_lmms.model_wrappers.base import STTMWrapper


class LlavaOneVision(STTMWrapper):
    """LLaVA-OneVision (Qwen2), original lmms-lab or llava-hf layout."""

    family: ClassVar[str] = "llava_onevision"
    refused: ClassVar[tuple[str, ...]] = ("min_pixels", "max_pixels")


class SimpleLlavaOneVision(LlavaOneVision):
    """The same for tasks that chat models cannot run (``--force_simple``)."""

    is_simple = True
