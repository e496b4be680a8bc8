"""``lmms-eval --model sttm_llava_video``."""

from __future__ import annotations

from typing import ClassVar

from sttm_lmms.model_wrappers.base import STTMWrapper


class LlavaVideo(STTMWrapper):
    """LLaVA-Video (Qwen2), original lmms-lab or Hugging Face layout."""

    family: ClassVar[str] = "llava_video"
    refused: ClassVar[tuple[str, ...]] = ("min_pixels", "max_pixels")


class SimpleLlavaVideo(LlavaVideo):
    """The same for tasks that chat models cannot run (``--force_simple``)."""

    is_simple = True
