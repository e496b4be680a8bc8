"""Settings of every registered method with which the contract tests run it."""

from __future__ import annotations

from typing import Any

from sttm_lmms.methods import BUILT_IN, get_method
from sttm_lmms.methods.base import Method

NAMES = tuple(BUILT_IN)
"""What is registered by the package; names that tests register do not belong here."""

SETTINGS: dict[str, dict[str, Any]] = {
    "streaming_llm": {"window": 60, "sinks": 4},
    "octree": {"budget": 0.6, "root_level": 0},
    "dycoke": {"budget": 0.6, "keep_kv": 0.5, "start_layer": 0, "prune_layer": 2},
}

EDITS_CACHE = ("dycoke", "streaming_llm")
"""Methods that edit the KV cache while decoding: one sequence with one video at a time."""

OUT_OF_ORDER = ("tome", "dycoke_stage1", "dycoke")
"""Methods whose survivors go on in another order than that of their places, as in the published
code."""

MERGING = ("sttm", "pool", "tome", "octree", "framefusion_merge", "cluster")
"""Methods in which no cell is dropped: every one of them has a token that stands for it."""


def method(name: str) -> Method:
    """One sensible setting of a method."""
    return get_method(name)(**SETTINGS.get(name, {"budget": 0.6}))
