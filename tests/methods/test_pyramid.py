"""Pyramid reduction: nearest cells, chained stages, budgets."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kept_checks import after, check_kept, video

from sttm_lmms.methods.base import BudgetWarning
from sttm_lmms.methods.pyramid import PyramidConfig


def test_stages_chain_on_the_grid_before() -> None:
    tokens = video((3, 7, 7))
    method = PyramidConfig(layers=(0, 2, 4), sizes=(6, 4, 2))
    cells = [(y, x) for y in range(7) for x in range(7)]
    side = 7
    for layer, size in ((0, 6), (2, 4), (4, 2)):
        kept = method.reduce(tokens, layer, None, {})
        check_kept(tokens, kept, merges=False)
        at = [i * side // size for i in range(size)]
        cells, side = [cells[y * side + x] for y in at for x in at], size
        tokens = after(tokens, kept)
        assert tokens.cells.tolist() == [[t, y, x] for t in range(3) for y, x in cells]


@pytest.mark.parametrize("layers", [(2,), (0, 3), (1, 2, 3)])
@settings(max_examples=60, deadline=None)
@given(grid=st.tuples(st.integers(1, 5), st.integers(1, 14), st.integers(1, 14)), budget=st.floats(0.01, 1.0))
def test_a_budget_is_never_exceeded(layers: tuple[int, ...], grid: tuple[int, int, int], budget: float) -> None:
    tokens, whole = video(grid, channels=2), grid[0] * grid[1] * grid[2]
    method = PyramidConfig(layers=layers, budget=budget)
    counts = []
    below = budget < 1 / (grid[1] * grid[2])
    for layer in layers:
        if below:
            with pytest.warns(BudgetWarning, match="less than one token a frame"):
                kept = method.reduce(tokens, layer, None, {})
        else:
            kept = method.reduce(tokens, layer, None, {})
        check_kept(tokens, kept, merges=False)
        tokens = after(tokens, kept)
        counts.append(len(tokens))
    assert counts == sorted(counts, reverse=True)
    assert len(tokens) / whole <= budget or len(tokens) == grid[0]


@pytest.mark.parametrize(
    ("grid", "budget", "expected"),
    [((14, 14), 1.0, 196), ((14, 14), 0.5, 90), ((14, 14), 0.3, 56), ((14, 14), 0.15, 25), ((6, 10), 0.5, 28)],
)
def test_nearest_sizes(grid: tuple[int, int], budget: float, expected: int) -> None:
    assert len(PyramidConfig(budget=budget).reduce(video((1, *grid)), 2, None, {})) == expected


def test_lists_and_single_numbers() -> None:
    assert PyramidConfig(layers=[0, 2], sizes=[6, 4]) == PyramidConfig(layers=(0, 2), sizes=(6, 4))
    assert PyramidConfig(layers=2, sizes=5).stages(28) == (2,)


def test_a_size_above_the_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="8 is more than the 7x7 grid"):
        PyramidConfig(sizes=(8,)).reduce(video((2, 7, 7)), 2, None, {})


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        ({}, "either sizes"),
        ({"sizes": (3,), "budget": 0.5}, "either sizes"),
        ({"sizes": (3, 2)}, "one size for each"),
        ({"sizes": (0,)}, "sizes=0"),
        ({"layers": (2, 1), "sizes": (3, 2)}, "ascending"),
        ({"layers": "2", "sizes": (3,)}, "layers='2'"),
        ({"budget": 2}, "budget=2"),
    ],
)
def test_bad_settings_are_refused(bad: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        PyramidConfig(**bad)
