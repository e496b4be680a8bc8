"""``lmms-eval --model sttm_internvl``."""

from __future__ import annotations

from typing import ClassVar

from sttm_lmms.model_wrappers.base import STTMWrapper


class InternVL(STTMWrapper):
    """InternVL3 and InternVL3.5 in the Hugging Face layout, one tile a frame."""

    family: ClassVar[str] = "internvl"
    refused: ClassVar[tuple[str, ...]] = ("newline", "min_pixels", "max_pixels")


class SimpleInternVL(InternVL):
    """The same for tasks that chat models cannot run (``--force_simple``)."""

    is_simple = True
