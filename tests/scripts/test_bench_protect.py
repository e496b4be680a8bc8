"""STTM with a protected share, the method of ``scripts/bench_protect.py``: what it keeps, and a small run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sttm_lmms import STTMConfig
from sttm_lmms.testing.synthetic import natural_features
from sttm_lmms.types import Tokens

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import bench_protect

    return bench_protect


def test_novel_tokens_stay_themselves(bench):
    tokens = Tokens.of_grid(natural_features(12, 7, 7, 16))
    config = bench.Protected(budget=0.2, protect=0.25)
    kept = config.reduce(tokens, 2, None, {})
    most = int(0.2 * len(tokens))
    novel = bench.most_novel(tokens, most // 4)
    assert novel.sum() == most // 4
    assert not novel[:49].any()
    assert most - 3 <= len(kept) <= most
    assert torch.equal(kept.features[kept.owner[novel]], tokens.features[novel])
    assert (torch.bincount(kept.owner)[kept.owner[novel]] == 1).all()
    assert torch.equal(kept.index, kept.index.sort().values)
    assert torch.equal(kept.owner[kept.index], torch.arange(len(kept)))


def test_nothing_protected_is_sttm(bench):
    tokens = Tokens.of_grid(natural_features(12, 7, 7, 16))
    plain = STTMConfig(budget=0.3).reduce(tokens, 2, None, {})
    kept = bench.Protected(budget=0.3, protect=0.0).reduce(tokens, 2, None, {})
    assert torch.equal(kept.features, plain.features)
    assert torch.equal(kept.owner, plain.owner)


@pytest.mark.slow
def test_a_small_run(bench, tmp_path):
    arguments = ["--families", "llava_video", "--budgets", "0.2", "--videos", "2"]
    bench.main([*arguments, "--work", str(tmp_path / "work"), "--out", str(tmp_path)])
    (row,) = json.loads((tmp_path / "cpu.json").read_text())["rows"]
    for run in (row["plain"], row["protected"]):
        assert run["tokens_into_the_llm"] <= 0.2 * run["visual_tokens"]
    assert "| llava_video | 20% |" in (tmp_path / "cpu.md").read_text()
