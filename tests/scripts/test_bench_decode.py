"""The decode benchmark in small: both ways run on the same cache, and hooks add few operations to a
step."""

from __future__ import annotations

import json

import bench_decode
import pytest

from sttm_lmms.testing.shapes import SHAPES, DecoderShape


def test_a_small_run(tmp_path, monkeypatch: pytest.MonkeyPatch):
    tiny = DecoderShape(hidden=64, layers=4, heads=4, kv_heads=2, mlp=128, vocab=100, grid=(7, 7))
    monkeypatch.setitem(SHAPES, "small", tiny)
    sizes = ["--shape", "small", "--frames", "4", "--tokens", "2", "--repeats", "1", "--device", "cpu"]
    bench_decode.main([*sizes, "--budgets", "0.5", "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "small-cpu.json").read_text())["rows"]
    assert [(row["budget"], row["start_layer"]) for row in rows] == [(1.0, None), (0.5, 0), (0.5, 2)]
    assert rows[0]["kv_tokens"] - rows[1]["kv_tokens"] == 98
    for row in rows:
        assert row["stock_operations"] <= row["hooks_operations"] <= 1.2 * row["stock_operations"]
