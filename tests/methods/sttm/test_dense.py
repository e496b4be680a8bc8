"""The dense path gives the tokens of the sparse one, also where it has to work in blocks, bands or more rounds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sttm_lmms.methods.sttm import (
    BudgetWarning,
    MergedTokens,
    STTMConfig,
    dense,
    dense_similarity,
    dense_tables,
    merge,
    merge_video_tokens,
)
from sttm_lmms.methods.sttm.dense_tables import tables_for
from sttm_lmms.methods.sttm.quadtree import Layout
from sttm_lmms.testing.synthetic import natural_features

pytestmark = pytest.mark.filterwarnings("ignore::sttm_lmms.methods.sttm.BudgetWarning")
SETTINGS = {
    "root_level": st.integers(0, 3),
    "weighted_avg": st.booleans(),
    "per_head": st.booleans(),
    "odd_edge": st.sampled_from(["reference", "masked"]),
}
# Below 1: a node with one child is similar to it by 1 but for the last bit, in which paths may differ.
BY_THRESHOLDS = st.builds(
    STTMConfig, spatial_threshold=st.floats(0.3, 0.999), temporal_threshold=st.floats(-0.1, 0.999), **SETTINGS
)
BY_BUDGET = st.builds(STTMConfig, budget=st.sampled_from([0.9, 0.5, 0.3, 0.15, 0.05]), **SETTINGS)
SIZES = st.tuples(st.sampled_from([1, 2, 3, 5, 9, 20]), st.integers(1, 15), st.integers(1, 15))
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-6, torch.float16: 2**-9}


@pytest.fixture(autouse=True)
def path() -> str:
    """Instead of the fixture of the folder: these tests name the path."""
    return "both"


def both(features: torch.Tensor, config: STTMConfig) -> MergedTokens:
    """The tokens, after a check that both paths give the same ones."""
    sparse, dense = (merge_video_tokens(features, config, 8, _path=path) for path in ("sparse", "dense"))
    for name in ("boxes", "counts", "source_map"):
        assert torch.equal(getattr(sparse, name), getattr(dense, name)), name
    # Off the path a threshold is itself a similarity, whose last bit may differ, and with it the number of steps.
    steps, expected_steps = (merged.info.pop("evaluations", 0) for merged in (dense, sparse))
    assert steps == pytest.approx(expected_steps, abs=3)
    assert dense.info == pytest.approx(sparse.info, rel=1e-6, abs=1e-6)
    assert (dense.features.dtype, dense.features.device) == (features.dtype, features.device)
    tolerance = TOLERANCE[features.dtype]
    scale = max(1.0, features.abs().max().item())
    torch.testing.assert_close(dense.features, sparse.features, atol=tolerance * scale, rtol=0)
    return dense


@settings(max_examples=60, deadline=None)
@given(
    size=SIZES,
    config=BY_THRESHOLDS | BY_BUDGET,
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_paths_agree(size: tuple[int, int, int], config: STTMConfig, seed: int, dtype: torch.dtype) -> None:
    both(natural_features(*size, 16, seed=seed, rank=6, dtype=dtype), config)


@pytest.mark.parametrize("settings", [{}, {"per_head": True}, {"weighted_avg": True}], ids=str)
@pytest.mark.parametrize("size", [(5, 14, 14), (4, 13, 17), (3, 27, 27), (3, 5, 40)])
def test_blocks_and_bands_change_nothing(
    size: tuple[int, int, int], settings: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, config = natural_features(*size, 32), STTMConfig(0.85, 0.6, **settings)
    whole = both(features, config)
    monkeypatch.setattr(dense_similarity, "TABLE_BYTES", 1)
    monkeypatch.setattr(dense_similarity, "TABLE_SHARE", 0)
    monkeypatch.setattr(dense_tables, "WHOLE_FRAME", 40)
    tables_for.cache_clear()
    try:
        bands = tables_for(*size[1:], 1, "reference", features.device).bands
        assert len(bands) > 1
        assert bands[-1].cells.stop == size[1] * size[2]
        pieces = both(features, config)
    finally:
        tables_for.cache_clear()
    assert torch.equal(pieces.features, whole.features)


def test_a_frame_beyond_the_limit_takes_the_sparse_path(monkeypatch: pytest.MonkeyPatch) -> None:
    features, config = natural_features(2, 2, 5000, 8), STTMConfig(0.85, 0.6)
    monkeypatch.setattr(merge.DenseVideo, "of", None)
    merged = merge_video_tokens(features, config, _path="dense")
    assert 0 < len(merged) < 20_000


@pytest.mark.parametrize("frames", [2, 3, 64, 65, 200, 1024])
def test_still_videos_of_any_length_are_one_chain(frames: int) -> None:
    frame = torch.randn(1, 3, 4, 8, generator=torch.Generator().manual_seed(0))
    assert len(both(frame.expand(frames, -1, -1, -1), STTMConfig(1.5, 0.9))) == 12


def test_more_rounds_than_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    features = natural_features(40, 7, 9, 16, rank=6)
    monkeypatch.setattr(dense, "rounds_for", lambda frames: 1)
    for config in (STTMConfig(0.8, 0.4), STTMConfig(budget=0.3)):
        both(features, config)


def test_a_budget_off_the_path_and_one_below_the_floor() -> None:
    """A still video, whose shares jump on the path, and one that cannot be reduced so far."""
    frame = torch.randn(1, 6, 10, 16, generator=torch.Generator().manual_seed(3))
    assert both(frame.expand(40, -1, -1, -1), STTMConfig(budget=0.5)).budget == 0.5
    noise = torch.randn(3, 6, 10, 16, generator=torch.Generator().manual_seed(3))
    with pytest.warns(BudgetWarning, match="below what this video allows"):
        both(noise, STTMConfig(budget=0.01))


@pytest.mark.parametrize("grid", [(14, 14), (13, 17), (27, 27), (5, 40), (2, 9), (1, 1)])
@pytest.mark.parametrize("root_level", [0, 1, 9])
def test_tables_agree_with_the_layout(grid: tuple[int, int], root_level: int) -> None:
    tables = tables_for(*grid, root_level, "reference", torch.device("cpu"))
    layout = Layout.of(*grid, root_level, torch.device("cpu"))
    assert tables.sizes == layout.sizes
    for level in range(tables.levels):
        y, x = (torch.arange(side) for side in grid)
        y0, y1 = (side[level].expand(grid[1], -1).T for side in (layout.top, layout.bottom))
        x0, x1 = (side[level].expand(grid[0], -1) for side in (layout.left, layout.right))
        assert torch.equal(tables.box[level, :, 1:], torch.stack((y0, x0, y1, x1), -1).flatten(0, 1))
        assert torch.equal(tables.anchor[level], (y0 * grid[1] + x0).flatten())
        inside = torch.zeros(grid[0] * grid[1]).index_add_(0, tables.anchor[level], tables.share[level])
        assert set(inside.tolist()) <= {0.0, 1.0}, "a node's shares sum up to 1"
        assert (y0[:, :1] <= y[:, None]).all()
        assert (x0[:1] <= x).all()
