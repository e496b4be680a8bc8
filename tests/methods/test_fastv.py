"""FastV: the right tokens, published and exact counts, and what it depends on."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kept_checks import check_kept, video

from sttm_lmms.methods.fastv import FastVConfig


class Weights:
    """A probe with given attention weights."""

    layers = 4

    def __init__(self, weights: torch.Tensor) -> None:
        self.weights = weights
        self.asked: list[tuple[int, ...]] = []

    def attention(self, queries: tuple[int, ...] = (-1,)) -> torch.Tensor:
        self.asked.append(tuple(queries))
        return self.weights[None]


@settings(max_examples=100, deadline=None)
@given(total=st.integers(1, 300), budget=st.floats(0.003, 1.0), seed=st.integers(0, 3))
def test_a_budget_keeps_the_most_attended(total: int, budget: float, seed: int) -> None:
    tokens = video((1, 1, total), channels=2)
    probe = Weights(torch.rand(total, generator=torch.Generator().manual_seed(seed)))
    kept = FastVConfig(budget=budget).reduce(tokens, 2, probe, {})
    check_kept(tokens, kept, merges=False)
    most = max(1, max(count for count in range(total + 1) if count / total <= budget))
    ranked = sorted(range(total), key=lambda i: -float(probe.weights[i]))
    assert kept.index.tolist() == sorted(ranked[:most])
    assert probe.asked == [(-1,)]


@pytest.mark.parametrize(
    ("total", "ratio", "expected"), [(245, 0.5, 122), (247, 0.5, 124), (588, 0.7, 176), (9, 1.0, 1)]
)
def test_a_ratio_rounds_as_published(total: int, ratio: float, expected: int) -> None:
    kept = FastVConfig(ratio=ratio).reduce(video((1, 1, total)), 2, Weights(torch.rand(total)), {})
    assert len(kept) == expected


def test_equal_weights_keep_the_first() -> None:
    kept = FastVConfig(budget=0.5).reduce(video((1, 2, 4)), 2, Weights(torch.ones(8)), {})
    assert kept.index.tolist() == [0, 1, 2, 3]


def test_it_reads_the_question() -> None:
    method = FastVConfig(ratio=0.5)
    assert not method.shares_prefix
    assert method.positions == "keep"
    assert method.stages(28) == (2,)


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        ({"layer": 0}, "layer=0"),
        ({"ratio": 2}, "ratio=2"),
        ({"budget": 0.5}, "either ratio"),
        ({"ratio": None}, "either"),
    ],
)
def test_bad_settings_are_refused(bad: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        FastVConfig(**{"ratio": 0.5, **bad})
