"""``lmms-eval --model sttm_qwen2_5_vl``."""

from __future__ import annotations

from typing import ClassVar

from sttm_lmms.model_wrappers.base import STTMWrapper


class Qwen25VL(STTMWrapper):
    """Qwen2.5-VL, frames sampled and resized as by qwen-vl-utils."""

    family: ClassVar[str] = "qwen2_5_vl"
    refused: ClassVar[tuple[str, ...]] = ("newline",)


class SimpleQwen25VL(Qwen25VL):
    """The same for tasks that chat models cannot run (``--force_simple``)."""

    is_simple = True
