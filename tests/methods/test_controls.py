"""The control methods: random dropping, frame dropping, average pooling."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sttm_lmms.methods import check_method, get_method
from sttm_lmms.methods.base import max_tokens
from sttm_lmms.methods.controls import FramesConfig, PoolConfig, RandomConfig, pooled_grid
from sttm_lmms.runtime.videos import reduce_grid
from sttm_lmms.types import MergedTokens, Tokens

CONTROLS = ("random", "frames", "pool")
GRIDS = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
BUDGETS = st.floats(0.01, 1.0)


def run(name: str, features: torch.Tensor, budget: float) -> MergedTokens:
    return reduce_grid(get_method(name)(budget=budget), features)


@pytest.mark.parametrize("name", CONTROLS)
@settings(max_examples=60, deadline=None)
@given(grid=GRIDS, budget=BUDGETS)
def test_tokens_are_within_the_budget_and_consistent(name: str, grid: tuple[int, int, int], budget: float) -> None:
    features = torch.randn(*grid, 3)
    merged = run(name, features, budget)

    smallest = grid[1] * grid[2] if name == "frames" else 1  # the least that the method can keep
    assert len(merged) / features[..., 0].numel() <= budget or len(merged) == smallest
    assert merged.grid == grid
    place = (merged.boxes[:, 0] * grid[1] + merged.boxes[:, 1]) * grid[2] + merged.boxes[:, 2]
    assert (place.diff() > 0).all()
    assert torch.equal(torch.bincount(merged.source_map[merged.source_map >= 0]), merged.counts)
    for number, (t, y0, x0, y1, x1) in enumerate(merged.boxes.tolist()):
        assert (merged.source_map[t, y0:y1, x0:x1] == number).all()
        expected = features[merged.source_map == number].mean(0)
        torch.testing.assert_close(merged.features[number], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", CONTROLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_whole_budget_keeps_everything_bit_by_bit(name: str, dtype: torch.dtype) -> None:
    features = torch.randn(3, 4, 5, 6).to(dtype)
    merged = run(name, features, 1.0)
    assert torch.equal(merged.features.view_as(features), features)


def test_random_depends_on_the_seed_alone() -> None:
    first, again, other = (
        reduce_grid(RandomConfig(budget=0.5, seed=seed), torch.randn(4, 6, 6, 2)).source_map for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_random_meets_the_budget_exactly() -> None:
    assert len(reduce_grid(RandomConfig(budget=0.3), torch.randn(4, 5, 5, 2))) == 30


def test_frames_are_evenly_spaced() -> None:
    merged = reduce_grid(FramesConfig(budget=0.25), torch.randn(12, 2, 2, 1))
    assert merged.boxes[:, 0].unique().tolist() == [2, 6, 10]
    assert (merged.source_map[[2, 6, 10]] >= 0).all()
    assert len(merged) == 12


def test_pool_of_halves_is_the_mean_of_two_by_two() -> None:
    features = torch.randn(2, 4, 6, 3)
    merged = reduce_grid(PoolConfig(budget=0.25), features)
    expected = features.unflatten(1, (2, 2)).unflatten(3, (3, 2)).mean((2, 4))
    torch.testing.assert_close(merged.features.view(2, 2, 3, 3), expected)


@pytest.mark.parametrize(
    ("grid", "budget", "expected"),
    [
        ((8, 14, 14), 0.5, (8, 7, 14)),
        ((8, 14, 14), 0.07, (8, 4, 3)),
        ((8, 14, 14), 0.003, (4, 1, 1)),
        ((8, 1, 9), 0.34, (8, 1, 3)),
    ],
)
def test_pooled_grid(grid: tuple[int, int, int], budget: float, expected: tuple[int, int, int]) -> None:
    after = pooled_grid(grid, budget)
    assert sorted(after) == sorted(expected)
    assert after[0] == expected[0]


@settings(max_examples=200, deadline=None)
@given(total=st.integers(1, 40_000), part=st.integers(1, 40_000))
def test_a_budget_that_is_a_quotient_is_exact(total: int, part: int) -> None:
    part = min(part, total)
    assert max_tokens(part / total, total) == part


@settings(max_examples=200, deadline=None)
@given(total=st.integers(1, 40_000), percent=st.integers(1, 10_000))
def test_a_budget_that_is_a_decimal_number_is_exact(total: int, percent: int) -> None:
    assert max_tokens(percent / 10_000, total) == max(1, percent * total // 10_000)


@pytest.mark.parametrize(("budget", "total"), [(0.29, 100), (0.57, 100), (0.1, 560), (0.07, 100), (0.3, 130)])
@pytest.mark.parametrize("name", ["sttm", "random", "tome", "framefusion_merge"])
def test_methods_with_an_exact_count_keep_the_same_number(name: str, budget: float, total: int) -> None:
    tokens = Tokens.of_grid(torch.randn(1, 10, total // 10, 8, generator=torch.Generator().manual_seed(0)))
    settings = {"root_level": 0} if name == "sttm" else {}
    kept = get_method(name)(budget=budget, **settings).reduce(tokens, 2, None, {})
    assert len(kept) == round(100 * budget) * total // 100


@pytest.mark.parametrize("name", CONTROLS)
@pytest.mark.parametrize(
    "bad", [{}, {"budget": 0}, {"budget": 1.5}, {"budget": "half"}, {"budget": 0.5, "start_layer": -1}]
)
def test_bad_settings_are_refused(name: str, bad: dict) -> None:
    with pytest.raises((ValueError, TypeError), match=r"budget|start_layer"):
        get_method(name)(**bad)


def test_bad_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="seed"):
        RandomConfig(budget=0.5, seed=-1)


@pytest.mark.parametrize("name", CONTROLS)
def test_settings_lead_back_to_their_method(name: str) -> None:
    config = get_method(name)(budget=0.5, start_layer=0, decode_positions="reference")
    assert check_method(config).name == name
