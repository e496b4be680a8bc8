"""Octree reduction against a slow recursive version, and its threshold search."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kept_checks import check_kept, video

from sttm_lmms.methods.base import BudgetWarning
from sttm_lmms.methods.octree import OctreeConfig
from sttm_lmms.types import Tokens

GRIDS = [(7, 7, 7), (12, 7, 7), (5, 6, 6), (13, 5, 5), (4, 3, 3), (9, 4, 7), (6, 7, 5), (3, 2, 2), (3, 1, 4), (2, 1, 1)]


def groups(side: int) -> list[list[int]]:
    """The children along one axis of each parent."""
    if side == 1:
        return [[0]]
    alone = [[0]] if side % 2 else []
    return alone + [[i, i + 1] for i in range(side % 2, side, 2)]


def slow_tree(grid: torch.Tensor, threshold: float, root_level: int, odd_edge: str) -> list[tuple[torch.Tensor, list]]:
    """(feature, cells) of each token of ``[D, H, W, C]``, by recursion."""
    levels, cells = [grid], [{p: [p] for p in _places(grid)}]
    children: list[dict] = []
    while min(levels[0].shape[1:3]) > 2:
        axes = [groups(side) for side in levels[0].shape[:3]]
        shape = [len(axis) for axis in axes]
        own = {
            (a, b, c): [(i, j, k) for i in axes[0][a] for j in axes[1][b] for k in axes[2][c]]
            for a in range(shape[0])
            for b in range(shape[1])
            for c in range(shape[2])
        }
        above = torch.stack([torch.stack([levels[0][p] for p in group]).mean(0) for group in own.values()])
        slots = 2 ** sum(side > 1 for side in levels[0].shape[:3])
        children.insert(0, {p: (group, len(group) < slots) for p, group in own.items()})
        cells.insert(0, {p: [cell for child in group for cell in cells[0][child]] for p, group in own.items()})
        levels.insert(0, above.view(*shape, -1))
    root = min(root_level, len(levels) - 1)
    out = []

    def walk(level: int, p: tuple[int, int, int]) -> None:
        if level < len(levels) - 1:
            group, short = children[level][p]
            compared = [*group, (0, 0, 0)] if short and odd_edge == "reference" else group
            parent = levels[level][p]
            cosines = [torch.cosine_similarity(parent, levels[level + 1][child], 0) for child in compared]
            if min(cosines) < threshold:
                for child in group:
                    walk(level + 1, child)
                return
        out.append((levels[level][p], sorted(cells[level][p])))

    for p in cells[root]:
        walk(root, p)
    return out


def _places(grid: torch.Tensor) -> list[tuple[int, int, int]]:
    d, h, w = grid.shape[:3]
    return [(i, j, k) for i in range(d) for j in range(h) for k in range(w)]


def slow_octree(
    tokens: Tokens, threshold: float, root_level: int, odd_edge: str
) -> list[tuple[torch.Tensor, list[int]]]:
    """Features and flat cells of each token, in order."""
    grid = tokens.as_grid()
    frames, height, width, _ = grid.shape
    depth = min(height, width)
    parts = [(t, depth) for t in range(0, frames - depth + 1, depth)]
    parts += [(t, 1) for t in range(len(parts) * depth, frames)]
    out = []
    for first, length in parts:
        part = slow_tree(grid[first : first + length], threshold, root_level, odd_edge)
        flat = [(f, [((first + t) * height + y) * width + x for t, y, x in own]) for f, own in part]
        out += sorted(flat, key=lambda token: token[1][0])
    return out


@pytest.mark.parametrize("odd_edge", ["reference", "masked"])
@pytest.mark.parametrize("root_level", [0, 1, 5])
@pytest.mark.parametrize("grid", GRIDS)
def test_it_is_the_slow_version(grid: tuple[int, int, int], root_level: int, odd_edge: str) -> None:
    tokens = video(grid, noise=0.5)
    for threshold in (-1.0, 0.3, 0.6, 0.8, 2.0):
        method = OctreeConfig(threshold=threshold, root_level=root_level, odd_edge=odd_edge)
        kept = method.reduce(tokens, 2, None, {})
        check_kept(tokens, kept, merges=True)
        expected = slow_octree(tokens, threshold, root_level, odd_edge)
        assert kept.index.tolist() == [own[0] for _, own in expected]
        owner = torch.empty(len(tokens), dtype=torch.long)
        for number, (_, own) in enumerate(expected):
            owner[own] = number
        assert torch.equal(kept.owner, owner)
        torch.testing.assert_close(kept.features, torch.stack([f for f, _ in expected]), atol=1e-5, rtol=0)


@settings(max_examples=100, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 12), st.integers(1, 8), st.integers(1, 8)),
    budget=st.floats(0.01, 1.0),
    root_level=st.integers(0, 2),
    seed=st.integers(0, 3),
)
def test_a_budget_finds_the_highest_threshold(
    grid: tuple[int, int, int], budget: float, root_level: int, seed: int
) -> None:
    tokens = video(grid, seed=seed)

    def share(threshold: float) -> float:
        method = OctreeConfig(threshold=threshold, root_level=root_level)
        return len(method.reduce(tokens, 2, None, {})) / len(tokens)

    method = OctreeConfig(budget=budget, root_level=root_level)
    if share(-1.0) > budget:
        with pytest.warns(BudgetWarning, match="root nodes are"):
            kept = method.reduce(tokens, 2, None, {})
        assert len(kept) / len(tokens) == share(-1.0)
        return
    kept = method.reduce(tokens, 2, None, {})
    check_kept(tokens, kept, merges=True)
    found = kept.info["threshold"]
    assert share(found) == len(kept) / len(tokens) <= budget
    if found < 2.0:  # the next higher threshold is too much
        assert share(found + 1e-6) > budget or share(found + 1e-6) == share(found)


def test_a_budget_of_one_keeps_everything_and_zeros_give_no_nan() -> None:
    tokens = video((9, 7, 7))
    kept = OctreeConfig(budget=1.0).reduce(tokens, 2, None, {})
    assert torch.equal(kept.features, tokens.features)
    zero = Tokens.of_grid(torch.zeros(8, 7, 7, 4))
    check_kept(zero, OctreeConfig(threshold=0.5).reduce(zero, 2, None, {}), merges=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    tokens = video((8, 7, 7))
    half = Tokens(tokens.features.to(dtype), tokens.cells, tokens.counts, tokens.grid)
    kept = OctreeConfig(budget=0.5).reduce(half, 2, None, {})
    check_kept(half, kept, merges=True)
    assert 0.4 < len(kept) / len(tokens) <= 0.5


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        ({}, "either threshold"),
        ({"threshold": 0.5, "budget": 0.5}, "either threshold"),
        ({"threshold": 3.0}, "threshold=3.0"),
        ({"budget": 0.0}, "budget=0.0"),
        ({"threshold": 0.5, "root_level": -1}, "root_level=-1"),
        ({"threshold": 0.5, "odd_edge": "no"}, "odd_edge='no'"),
    ],
)
def test_bad_settings_are_refused(bad: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        OctreeConfig(**bad)
