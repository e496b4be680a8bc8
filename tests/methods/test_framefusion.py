"""FrameFusion and its one-layer variant: against slow versions, the cost, and what each call may
do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kept_checks import after, check_kept, video

from sttm_lmms.methods.framefusion import FrameFusionConfig, FrameFusionMergeConfig
from sttm_lmms.types import Kept, Tokens


class RandomAttention:
    """A probe whose attention weights are drawn anew for every call."""

    def __init__(self, layers: int, seed: int = 0) -> None:
        self.layers = layers
        self.generator = torch.Generator().manual_seed(seed)
        self.size = 0
        self.weights: list[torch.Tensor] = []

    def attention(self, queries: tuple[int, ...] = (-1,)) -> torch.Tensor:
        self.weights.append(torch.rand(len(queries), self.size, generator=self.generator))
        return self.weights[-1]


def run(
    method: FrameFusionConfig, tokens: Tokens, probe: RandomAttention, drift: float = 0.3
) -> tuple[list[int], list[tuple[Tokens, Kept | None]]]:
    """All calls; tokens seen by each layer's attention, and (tokens, kept) of each call. Layers
    change the tokens."""
    generator = torch.Generator().manual_seed(1)
    state: dict[str, Any] = {}
    seen, calls = [], []
    for stage in method.stages(probe.layers):
        probe.size = len(tokens)
        kept = method.reduce(tokens, stage.layer, probe, state)
        calls.append((tokens, kept))
        if kept is not None:
            check_kept(tokens, kept, merges="merged" in kept.info)
        tokens = after(tokens, kept)
        if len(seen) < probe.layers:
            seen.append(len(tokens))
        noise = torch.randn(tokens.features.shape, generator=generator)
        tokens = Tokens(tokens.features + drift * noise, tokens.cells, tokens.counts, tokens.grid)
    return seen, calls


def slow_chain(tokens: Tokens) -> list[tuple[int, float]]:
    """(token, similarity to the one before at its place) place by place."""
    _, height, width = tokens.grid
    chain: list[tuple[int, float]] = []
    for place in range(height * width):
        own = [i for i, (_, y, x) in enumerate(tokens.cells.tolist()) if y * width + x == place]
        for number, i in enumerate(own):
            if number == 0:
                chain.append((i, -2.0))
            else:
                a, b = tokens.features[i].double(), tokens.features[own[number - 1]].double()
                chain.append((i, float(a @ b / (a.norm() * b.norm()))))
    return chain


def slow_merge(tokens: Tokens, marked: set[int]) -> tuple[list[int], list[list[int]], torch.Tensor]:
    """Survivors in order, their members, and the plain means."""
    groups: dict[int, list[int]] = {}
    head = -1
    for i, _ in slow_chain(tokens):
        if i in marked:
            groups[head].append(i)
        else:
            head, groups[i] = i, [i]
    index = sorted(groups)
    return index, [groups[i] for i in index], torch.stack([tokens.features[groups[i]].mean(0) for i in index])


def upper_bound(shares: list[float], cost: float, layers: int) -> float:
    product, total = 1.0, 0.0
    for share in shares:
        product *= 1 - share
        total += product
    rest = layers * cost - total
    assert rest >= 0
    x = rest / ((layers - len(shares)) * product)
    return 0.0 if x > 1 else 1 - x


@pytest.mark.parametrize("layers", [None, 28])
@pytest.mark.parametrize("cost", [0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("noise", [0.2, 0.6, 0.8, 1.0, 3.0])
def test_calls_are_the_slow_version(cost: float, noise: float, layers: int | None) -> None:
    probe = RandomAttention(6)
    _, calls = run(FrameFusionConfig(cost=cost, cost_layers=layers), video((6, 3, 4), 16, noise=noise), probe)
    shares: list[float] = []
    merged = finished = False
    for tokens, kept in calls:
        if finished or len(shares) >= (layers or 6):
            assert kept is None
            continue
        bound, present = upper_bound(shares, cost, layers or 6), len(tokens)
        if merged:
            finished = True
            weights = probe.weights[0][0]
            ranked = sorted(range(present), key=lambda i: -float(weights[i]))
            assert kept is not None
            assert kept.index.tolist() == sorted(ranked[: round(present * (1 - bound))])
            continue
        chain = slow_chain(tokens)
        marked = {i for i, s in chain if s >= 0.6}
        share = len(marked) / present
        if share < bound:
            shares.append(share)
            merged = share < 0.1
        else:
            finished = True
            marked = {i for i, _ in sorted(chain, key=lambda entry: -entry[1])[: int(bound * present)]}
        if not marked:
            assert kept is None
            continue
        index, members, means = slow_merge(tokens, marked)
        assert kept is not None
        assert kept.index.tolist() == index
        for number, own in enumerate(members):
            assert (kept.owner == number).nonzero().squeeze(1).tolist() == sorted(own)
        torch.testing.assert_close(kept.features, means, atol=1e-5, rtol=0)
    assert len(probe.weights) <= 1  # attention is asked for once at most


@settings(max_examples=150, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 4)),
    budget=st.floats(0.02, 1.0),
    noise=st.sampled_from([0.0, 0.3, 0.7, 1.0, 3.0]),
    layers=st.integers(1, 8),
    ratio=st.sampled_from([0.0, 0.02, 0.1, 0.5]),
)
def test_a_budget_is_the_mean_over_layers_and_never_exceeded(
    grid: tuple[int, int, int], budget: float, noise: float, layers: int, ratio: float
) -> None:
    tokens = video(grid, noise=noise)
    seen, _ = run(FrameFusionConfig(budget=budget, ratio=ratio), tokens, RandomAttention(layers))
    assert len(seen) == layers
    mean = sum(seen) / layers / len(tokens)
    least = 1 / len(tokens)  # one token in every layer
    assert mean <= budget + 1e-9 or mean == pytest.approx(least)


def test_a_budget_is_used() -> None:
    for budget in (0.5, 0.3, 0.15):
        for noise in (0.3, 0.8, 3.0):
            tokens = video((16, 5, 5), noise=noise)
            seen, _ = run(FrameFusionConfig(budget=budget), tokens, RandomAttention(12))
            assert budget - 0.02 < sum(seen) / 12 / len(tokens) <= budget


def test_where_merging_would_spend_the_cost_it_ends() -> None:
    """Here the published code stops with a negative cost: a fifth of the tokens are similar, too
    few by far."""
    tokens = video((5, 4, 4), channels=64, noise=3.0)
    features = tokens.features.clone().view(5, 16, 64)
    features[1] = features[0]  # a fifth merges, the rest is dissimilar
    tokens = Tokens(features.flatten(0, 1), tokens.cells, tokens.counts, tokens.grid)
    for method in (FrameFusionConfig(cost=0.05), FrameFusionConfig(budget=0.05)):
        seen, _ = run(method, tokens, RandomAttention(12))
        assert seen[0] <= 0.06 * 80


def test_a_single_frame_and_zero_vectors() -> None:
    for tokens in (video((1, 3, 3)), Tokens.of_grid(torch.zeros(4, 2, 2, 8))):
        seen, _ = run(FrameFusionConfig(budget=0.4), tokens, RandomAttention(4))
        assert max(seen) <= len(tokens)
        assert sum(seen) <= 0.4 * 4 * len(tokens)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 0.7])
def test_one_layer_is_the_slow_version(ratio: float) -> None:
    tokens = video((5, 3, 3))
    kept = FrameFusionMergeConfig(ratio=ratio).reduce(tokens, 2, None, {})
    check_kept(tokens, kept, merges=True)
    chain = sorted(slow_chain(tokens), key=lambda entry: -entry[1])
    index, _, means = slow_merge(tokens, {i for i, _ in chain[: int(ratio * 45)]})
    assert kept.index.tolist() == index
    torch.testing.assert_close(kept.features, means, atol=1e-5, rtol=0)


@settings(max_examples=80, deadline=None)
@given(grid=st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 4)), budget=st.floats(0.01, 1.0))
def test_one_layer_meets_a_budget_exactly(grid: tuple[int, int, int], budget: float) -> None:
    tokens = video(grid)
    kept = FrameFusionMergeConfig(budget=budget).reduce(tokens, 2, None, {})
    check_kept(tokens, kept, merges=True)
    assert len(kept) == max(1, max(n for n in range(len(tokens) + 1) if n / len(tokens) <= budget))


def test_stages_and_dependence_on_the_question() -> None:
    stages = FrameFusionConfig(cost=0.5).stages(3)
    assert stages == [(0, "layer"), (0, "mlp"), (1, "mlp"), (2, "mlp")]
    assert FrameFusionMergeConfig(ratio=0.5, start_layer=1).stages(3) == ((1, "attention"),)
    assert not FrameFusionConfig(cost=0.5).shares_prefix
    assert FrameFusionMergeConfig(ratio=0.5).shares_prefix


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        ({}, "either cost"),
        ({"cost": 0.5, "budget": 0.5}, "either cost"),
        ({"cost": 0.0}, "cost=0.0"),
        ({"budget": 1.1}, "budget=1.1"),
        ({"cost": 0.5, "similarity": 2.0}, "similarity=2.0"),
        ({"cost": 0.5, "ratio": -0.1}, "ratio=-0.1"),
        ({"cost": 0.5, "cost_layers": 0}, "cost_layers=0"),
    ],
)
def test_bad_settings_are_refused(bad: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        FrameFusionConfig(**bad)
