"""Qwen3.5: it sees and is prompted as Qwen3-VL without deepstack, and three of four decoder layers are
recurrent.

Source: the classes of transformers; gated delta nets: arXiv 2412.06464. A recurrent layer updates
its state once for each token that it is fed, so a merged token is one update, whatever it stands
for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from sttm_lmms.families.qwen3_vl import Qwen3VL


class Qwen35(Qwen3VL):
    """Qwen3.5 and 3.6, and their mixtures of experts."""

    name: ClassVar[str] = "qwen3_5"
    architectures: ClassVar[Mapping[str, str]] = {
        "Qwen3_5ForConditionalGeneration": "hf",
        "Qwen3_5MoeForConditionalGeneration": "hf",
    }
    model_types: ClassVar[tuple[str, ...]] = ("qwen3_5", "qwen3_5_moe")
    # In front of the first layer with attention, so that the whole KV cache is short.
    start_layer: ClassVar[int] = 3
    # Tasks give answers a few tokens, fewer than a thought takes.
    template_settings: ClassVar[Mapping[str, Any]] = {"enable_thinking": False}

    def method_defaults(self, method: type) -> dict[str, Any]:
        """As of :class:`~sttm_lmms.families.base.Family`; FastV acts behind the first layer that has
        attention to read."""
        if getattr(method, "reads", "") == "attention" and hasattr(method, "layer"):
            return {"layer": self.start_layer + 1}
        return super().method_defaults(method)
