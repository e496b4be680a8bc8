"""``lmms-eval --model sttm_qwen3_vl``."""

from __future__ import annotations

from typing import ClassVar

from sttm_lmms.model_wrappers.base import STTMWrapper


class Qwen3VL(STTMWrapper):
    """Qwen3-VL, frames sampled and resized as by qwen-vl-utils; reduced in front of layer 3 unless told otherwise."""

    family: ClassVar[str] = "qwen3_vl"
    refused: ClassVar[tuple[str, ...]] = ("newline",)


class SimpleQwen3VL(Qwen3VL):
    """The same for tasks that chat models cannot run (``--force_simple``)."""

    is_simple = True
