"""The benchmark of more frames at the same cost: its numbers, and a small run of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import bench_frames

    return bench_frames


def row(scores: list[float], videos: list[str]) -> dict:
    return {"scores": scores, "videos": videos}


def test_gain_is_paired_and_over_videos(bench):
    videos = ["a", "a", "b", "b"]
    base = row([0.0, 1.0, 0.0, 0.0], videos)
    assert bench.gain(row([1.0, 1.0, 1.0, 0.0], videos), base) == pytest.approx((0.5, 0.5, 0.5))
    mean, low, high = bench.gain(row([1.0, 1.0, 0.0, 0.0], videos), base)
    assert (mean, low, high) == pytest.approx((0.25, 0.0, 0.5))


@pytest.mark.slow
def test_a_small_run(bench, tmp_path):
    bench.main(["--videos", "2", "--seconds", "6", "--pairs", "2", "4:0.5", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "cpu.json").read_text())
    few, many = found["rows"]
    assert few["visual_tokens"] == few["tokens_into_the_llm"] == 2 * 49
    assert many["visual_tokens"] == 4 * 49
    assert many["tokens_into_the_llm"] <= 2 * 49
    assert few["gain"] == [0.0, 0.0, 0.0]
    assert "| 4 | 50% | 196 |" in (tmp_path / "cpu.md").read_text()
    assert {"command", "date", "device", "torch"} <= set(found)
