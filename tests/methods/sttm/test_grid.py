"""Pyramid sizes, and the geometry of nodes on odd and even sides."""

from __future__ import annotations

import pytest
import torch

from sttm_lmms.methods.quadtree import pyramid_sizes
from sttm_lmms.methods.sttm import STTMConfig, merge_video_tokens
from sttm_lmms.methods.sttm.grid import grid_for

CPU = torch.device("cpu")


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
    box = grid_for(7, 7, 0, "reference", CPU).box.view(3, 7, 7, 5)
    assert box[0, :, 0, 1].tolist() == [0, 0, 0, 3, 3, 3, 3]
    assert box[0, :, 0, 3].tolist() == [3, 3, 3, 7, 7, 7, 7]
    assert box[1, 0, :, 2].tolist() == [0, 1, 1, 3, 3, 5, 5]
    assert box[2, 2, 3].tolist() == [0, 2, 3, 3, 4]


@pytest.mark.parametrize("grid", [(14, 14), (13, 17), (27, 27), (5, 40), (2, 9), (1, 1)])
@pytest.mark.parametrize("root_level", [0, 1, 9])
def test_tables_agree_with_each_other(grid: tuple[int, int], root_level: int) -> None:
    """Anchors, offsets, shares, children and pairs, from the boxes alone."""
    tables = grid_for(*grid, root_level, "reference", CPU)
    width = grid[1]
    _, y0, x0, y1, x1 = tables.box.unbind(-1)
    y, x = tables.cell // width, tables.cell % width
    assert ((y0 <= y) & (y < y1) & (x0 <= x) & (x < x1)).all(), "a node is over its cells"
    assert torch.equal(tables.anchor, y0 * width + x0)
    assert torch.equal(tables.offset, tables.cell - tables.anchor)
    for level in range(tables.levels):
        shares = torch.zeros(tables.cells).index_add_(0, tables.anchor[level], tables.share[level])
        assert set(shares.tolist()) <= {0.0, 1.0}, "a node's shares sum up to 1"
    for level in range(tables.levels - 1):
        first = tables.anchor[level].unique()
        below = [tables.anchor[level + 1][tables.anchor[level] == cell].unique().numel() for cell in first]
        assert tables.children[level, first].tolist() == below
        assert tables.children[level].sum() == sum(below)
    nodes = torch.cat((tables.over + tables.cells, tables.cell[None]))
    pairs = tables.pairs[:, tables.pair]
    assert torch.equal(pairs[0], nodes[:, None].expand_as(pairs[0]))
    assert torch.equal(pairs[1], nodes[None].expand_as(pairs[1]))


def test_levels_are_means_of_means_and_weighted_ones_means_of_cells() -> None:
    features = torch.arange(7.0).view(1, 1, 7, 1).expand(1, 7, 7, 2)
    plain, weighted = (
        merge_video_tokens(features, STTMConfig(-1, 0, root_level=0, weighted_avg=weighted)).features
        for weighted in (False, True)
    )
    assert plain[:2, 0].tolist() == [(0 + 1.5) / 2, (3.5 + 5.5) / 2]
    assert weighted[:2, 0].tolist() == [1.0, 4.5]


def test_border_nodes_are_compared_with_the_corner_only_as_a_reference() -> None:
    features = torch.ones(1, 3, 3, 2)
    features[0, 0, 0] = torch.tensor([1.0, -1.0])  # unlike all others
    tokens = {
        odd_edge: len(merge_video_tokens(features, STTMConfig(0.9, 0.0, root_level=0, odd_edge=odd_edge)))
        for odd_edge in ("reference", "masked")
    }
    assert tokens == {"reference": 6, "masked": 4}
