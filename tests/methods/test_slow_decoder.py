"""The runtime's hooks against the slow decoder: every method with our own settings, where no
recording exists."""

from __future__ import annotations

from typing import Any

import pytest
import recorded
from slow_decoder import check_against_hooks

from sttm_lmms.methods import get_method

METHODS: list[tuple[str, dict[str, Any]]] = [
    ("tome", {"budget": 0.4, "scope": "frame"}),
    ("tome", {"budget": 0.25, "start_layer": 0}),
    ("dycoke_stage1", {"budget": 0.5}),
    ("dycoke", {"budget": 0.5, "keep_kv": 0.2}),
    ("dycoke", {"ratio": 0.0, "start_layer": 2, "prune_layer": 4, "keep_kv": 0.5}),
    ("fastv", {"budget": 0.3, "layer": 3}),
    ("framefusion", {"budget": 0.5}),
    ("framefusion", {"budget": 0.4, "similarity": 0.95}),
    ("framefusion", {"cost": 0.4, "similarity": 0.9, "ratio": 0.3}),
    ("framefusion_merge", {"budget": 0.45, "start_layer": 1}),
    ("streaming_llm", {"window": 120}),
    ("streaming_llm", {"budget": 0.5, "sinks": 4}),
    ("octree", {"budget": 0.6, "root_level": 0}),
    ("pyramid", {"budget": 0.3, "layers": (0, 3)}),
]


@pytest.mark.parametrize(("name", "settings"), METHODS, ids=[f"{n}-{i}" for i, (n, _) in enumerate(METHODS)])
def test_prefill_and_steps(name: str, settings: dict[str, Any]) -> None:
    embeds, span = recorded.prompt("none_T12")
    decoder, report = check_against_hooks(recorded.model(), get_method(name)(**settings), span, embeds, steps=8)
    if name in ("dycoke", "streaming_llm"):
        assert report.kv_share < 1
    else:
        assert report.kv_share == 1
    if name != "streaming_llm":
        assert report.latest[0].after == len(decoder.video)
    if name == "framefusion":
        assert report.latest[0].layer_budget <= settings.get("budget", 1.0)
    elif "budget" in settings and name != "streaming_llm":
        assert report.latest[0].budget <= settings["budget"]
