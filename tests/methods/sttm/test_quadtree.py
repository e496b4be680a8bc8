"""Pyramid sizes, and the geometry of nodes on odd and even sides."""

from __future__ import annotations

import pytest
import torch

from sttm_lmms.methods.sttm import STTMConfig
from sttm_lmms.methods.sttm.quadtree import Layout, build_quadtrees, partition_at, pyramid_sizes


@pytest.mark.parametrize(
    ("grid", "sizes"),
    [
        ((14, 14), [(2, 2), (4, 4), (7, 7), (14, 14)]),
        ((6, 10), [(2, 3), (3, 5), (6, 10)]),
        ((5, 7), [(2, 2), (3, 4), (5, 7)]),
        ((27, 27), [(2, 2), (4, 4), (7, 7), (14, 14), (27, 27)]),
        ((3, 3), [(2, 2), (3, 3)]),
        ((3, 40), [(2, 20), (3, 40)]),
        ((2, 9), [(2, 9)]),
        ((1, 1), [(1, 1)]),
        ((1, 9), [(1, 9)]),
        ((9, 1), [(9, 1)]),
    ],
)
def test_pyramid_sizes(grid: tuple[int, int], sizes: list[tuple[int, int]]) -> None:
    assert pyramid_sizes(*grid) == sizes


def test_the_first_row_of_an_odd_side_stays_alone() -> None:
    layout = Layout.of(7, 7, 0, torch.device("cpu"))
    assert layout.row.tolist() == [[0, 0, 0, 1, 1, 1, 1], [0, 1, 1, 2, 2, 3, 3], [0, 1, 2, 3, 4, 5, 6]]
    assert layout.top[0].tolist() == [0, 0, 0, 3, 3, 3, 3]
    assert layout.bottom[0].tolist() == [3, 3, 3, 7, 7, 7, 7]


def test_levels_are_means_of_means_and_weighted_ones_means_of_cells() -> None:
    features = torch.arange(7.0).view(1, 1, 7, 1).expand(1, 7, 7, 2)
    plain = build_quadtrees(features, STTMConfig(0.9, 0.0, root_level=0)).levels[0]
    weighted = build_quadtrees(features, STTMConfig(0.9, 0.0, root_level=0, weighted_avg=True)).levels[0]
    assert plain[0, 0, :, 0].tolist() == [(0 + 1.5) / 2, (3.5 + 5.5) / 2]
    assert weighted[0, 0, :, 0].tolist() == [1.0, 4.5]


def test_border_nodes_are_compared_with_the_corner_only_as_a_reference() -> None:
    features = torch.ones(1, 3, 3, 2)
    features[0, 0, 0] = torch.tensor([1.0, -1.0])  # unlike all others
    tokens = {}
    for odd_edge in ("reference", "masked"):
        trees = build_quadtrees(features, STTMConfig(0.9, 0.0, root_level=0, odd_edge=odd_edge))
        tokens[odd_edge] = int(partition_at(trees.layout, trees.min_child_similarity, 0.9).is_anchor.sum())
    assert tokens == {"reference": 6, "masked": 4}
