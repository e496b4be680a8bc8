"""A budget is met to the token, and what is split off is what is least similar."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sttm_lmms.methods.base import max_tokens
from sttm_lmms.methods.sttm import STTMConfig, merge_video_tokens
from sttm_lmms.methods.sttm.cluster import Labels
from sttm_lmms.methods.sttm.exact import join_to_count, split_to_count
from sttm_lmms.methods.sttm.grid import grid_for
from sttm_lmms.methods.sttm.search import LOWEST
from sttm_lmms.methods.sttm.similarity import Similarities
from sttm_lmms.testing.synthetic import natural_features


@pytest.mark.filterwarnings("ignore::sttm_lmms.methods.sttm.BudgetWarning")
@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.sampled_from([1, 2, 3, 9]), st.integers(1, 15), st.integers(1, 15)),
    budget=st.floats(0.03, 1.0),
    root_level=st.integers(0, 3),
    weighted_avg=st.booleans(),
    kind=st.sampled_from(["natural", "still", "flat"]),
)
def test_the_count_is_exact_above_the_floor(
    size: tuple[int, int, int], budget: float, root_level: int, weighted_avg: bool, kind: str
) -> None:
    features = torch.ones(*size, 8) if kind == "flat" else natural_features(*size, 8, rank=4)
    if kind == "still":
        features = features[:1].expand(size[0], -1, -1, -1)
    config = STTMConfig(budget=budget, root_level=root_level, weighted_avg=weighted_avg)
    merged = merge_video_tokens(features, config)
    floor = len(merge_video_tokens(features, STTMConfig(*LOWEST, root_level=root_level)))
    assert len(merged) == max(max_tokens(budget, math.prod(size)), floor)

    assert torch.equal(torch.bincount(merged.source_map.flatten(), minlength=len(merged)), merged.counts)
    for number, (t, y0, x0, y1, x1) in enumerate(merged.boxes.tolist()):
        assert (merged.source_map[t, y0:y1, x0:x1] == number).all(), "a token stands for the cells of its own box"
    if weighted_avg:
        cells = torch.stack([features[merged.source_map == i].mean(0) for i in range(len(merged))])
        torch.testing.assert_close(merged.features, cells, atol=1e-5, rtol=0)


def test_the_least_similar_leave_first() -> None:
    """Three frames of two cells; all of the last four have joined the first two."""
    grid, cell = grid_for(1, 2, 0, "reference", torch.device("cpu")), torch.arange(6)
    link = torch.tensor([0.9, 0.7, 0.8, 0.95])
    labels = Labels(torch.zeros(6, dtype=torch.long), cell, torch.tensor([0, 1, 0, 1, 0, 1]), 2, 6, link)
    similarities = Similarities(torch.empty(3, 0, 1, 2), torch.empty(3, 0, 1, 2), None, 0)
    owners = [split_to_count(labels, similarities, grid, 2 + number).owner.tolist() for number in (0, 1, 2, 4)]
    assert owners == [[0, 1, 0, 1, 0, 1], [0, 1, 0, 3, 0, 1], [0, 1, 0, 3, 4, 1], [0, 1, 2, 3, 4, 5]]


def test_nodes_split_from_the_least_similar_on_and_the_last_one_in_part() -> None:
    grid = grid_for(4, 4, 0, "reference", torch.device("cpu"))
    anchor = grid.anchor[0]
    min_child = torch.tensor([0.9, 0.2, 0.5, 0.8])[grid.over[0]].view(1, 1, 1, 16)
    labels = Labels(torch.zeros(16, dtype=torch.long), anchor, anchor, 4, 4)

    def owners(number: int) -> list[int]:
        return split_to_count(labels, Similarities(min_child, min_child, None, 0), grid, 4 + number).owner.tolist()

    for number, expected in {
        3: [0, 0, 2, 3, 0, 0, 6, 7, 8, 8, 10, 10, 8, 8, 10, 10],
        5: [0, 0, 2, 3, 0, 0, 6, 7, 8, 9, 10, 10, 12, 8, 10, 10],
    }.items():
        assert owners(number) == expected
        assert len(set(expected)) == 4 + number
    assert owners(12) == list(range(16))


@pytest.mark.parametrize("budget", [0.5, 0.3])
def test_what_is_not_a_number_is_counted_exactly_and_merges_with_nothing(budget: float) -> None:
    features = natural_features(6, 13, 10, 16)
    features[1, 3, 4], features[2, 0, 0, 0], features[4, 5, 5] = math.nan, math.nan, math.inf
    merged = merge_video_tokens(features, STTMConfig(budget=budget))
    assert len(merged) == max_tokens(budget, 780)
    spoiled = ~merged.features.isfinite().all(-1)
    assert merged.counts[spoiled].tolist() == [1, 1, 1]


@pytest.mark.filterwarnings("ignore::sttm_lmms.methods.sttm.BudgetWarning")
@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.sampled_from([1, 2, 3, 9]), st.integers(1, 9), st.integers(1, 9)),
    budget=st.floats(0.001, 1.0),
    kind=st.sampled_from(["noise", "natural", "nan"]),
    weighted_avg=st.booleans(),
)
def test_below_the_floor_tokens_join_until_the_count_is_met(
    size: tuple[int, int, int], budget: float, kind: str, weighted_avg: bool
) -> None:
    generator = torch.Generator().manual_seed(1)
    features = natural_features(*size, 8) if kind == "natural" else torch.randn(*size, 8, generator=generator)
    if kind == "nan":
        features[0, 0, 0], features[-1] = math.nan, math.nan
    config = STTMConfig(budget=budget, floor="join", weighted_avg=weighted_avg)
    merged = merge_video_tokens(features, config)
    assert len(merged) == max_tokens(budget, math.prod(size)) == config.count(size)
    assert torch.equal(torch.bincount(merged.source_map.flatten(), minlength=len(merged)), merged.counts)
    for number, (t, y0, x0, y1, x1) in enumerate(merged.boxes.tolist()):
        assert (merged.source_map[t, y0:y1, x0:x1] == number).all(), "a token stands for the cells of its own box"
    if weighted_avg:
        cells = torch.stack([features[merged.source_map == i].mean(0) for i in range(len(merged))])
        torch.testing.assert_close(merged.features, cells, atol=1e-5, rtol=0, equal_nan=True)
    above = merge_video_tokens(features, STTMConfig(*LOWEST))
    if len(merged) >= len(above):  # at or above the floor nothing changes
        kept = merge_video_tokens(features, STTMConfig(budget=budget, weighted_avg=weighted_avg))
        assert torch.equal(kept.source_map, merged.source_map)


def test_the_most_similar_tokens_join_first_along_time_and_neighbours_last() -> None:
    """Three frames of two cells that nothing merges, and what each of the last four is like in the
    frame before."""
    grid, cell = grid_for(1, 2, 0, "reference", torch.device("cpu")), torch.arange(6)
    labels = Labels(torch.zeros(6, dtype=torch.long), cell, cell, 6, 6, torch.tensor([-0.9, -0.7, math.nan, -0.95]))
    owners = [join_to_count(labels, grid, count).owner.tolist() for count in (6, 5, 4, 3, 2, 1)]
    assert owners == [
        [0, 1, 2, 3, 4, 5],
        [0, 1, 2, 1, 4, 5],
        [0, 1, 0, 1, 4, 5],
        [0, 1, 0, 1, 4, 1],
        [0, 1, 0, 1, 0, 1],
        [0, 0, 0, 0, 0, 0],
    ]


def test_joining_needs_a_budget() -> None:
    with pytest.raises(ValueError, match="floor='join' needs a budget"):
        STTMConfig(0.9, 0.6, floor="join")
