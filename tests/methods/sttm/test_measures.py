"""Both measures give the same tokens, also where work goes in blocks, or a union takes more
rounds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from measures import measured_by

from sttm_lmms.methods.sttm import (
    BudgetWarning,
    MergedTokens,
    STTMConfig,
    cluster,
    gather,
    merge_video_tokens,
    products,
    similarity,
)
from sttm_lmms.methods.sttm import grid as grids
from sttm_lmms.testing.synthetic import natural_features

pytestmark = pytest.mark.filterwarnings("ignore::sttm_lmms.methods.sttm.BudgetWarning")
SETTINGS = {
    "root_level": st.integers(0, 3),
    "weighted_avg": st.booleans(),
    "per_head": st.booleans(),
    "odd_edge": st.sampled_from(["reference", "masked"]),
}
# Below 1: a node with one child is similar to it by 1 but for the last bit, in which measures may
# differ.
BY_THRESHOLDS = st.builds(
    STTMConfig, spatial_threshold=st.floats(0.3, 0.999), temporal_threshold=st.floats(-0.1, 0.999), **SETTINGS
)
BY_BUDGET = st.builds(STTMConfig, budget=st.sampled_from([0.9, 0.5, 0.3, 0.15, 0.05]), **SETTINGS)
SIZES = st.tuples(st.sampled_from([1, 2, 3, 5, 9, 20]), st.integers(1, 15), st.integers(1, 15))
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-5, torch.bfloat16: 2**-6, torch.float16: 2**-9}


@pytest.fixture(autouse=True)
def measure() -> str:
    """Instead of the fixture of the folder: these tests name the measure."""
    return "both"


def merge_by(way: str, features: torch.Tensor, config: STTMConfig) -> MergedTokens:
    with measured_by(way):
        return merge_video_tokens(features, config, 8)


def both(features: torch.Tensor, config: STTMConfig) -> MergedTokens:
    """The tokens, after a check that both measures give the same ones."""
    gathered, multiplied = (merge_by(way, features, config) for way in ("gather", "products"))
    for name in ("boxes", "counts", "source_map"):
        assert torch.equal(getattr(gathered, name), getattr(multiplied, name)), name
    for merged in (gathered, multiplied):
        merged.info.pop("evaluations", 0)  # on accelerators more are counted, many at once
    assert multiplied.info == pytest.approx(gathered.info, rel=1e-6, abs=1e-6)
    assert (multiplied.features.dtype, multiplied.features.device) == (features.dtype, features.device)
    tolerance = TOLERANCE[features.dtype]
    scale = max(1.0, features.abs().max().item())
    torch.testing.assert_close(multiplied.features, gathered.features, atol=tolerance * scale, rtol=0)
    return multiplied


@settings(max_examples=60, deadline=None)
@given(
    size=SIZES,
    config=BY_THRESHOLDS | BY_BUDGET,
    seed=st.integers(0, 1000),
    dtype=st.sampled_from(list(TOLERANCE)),
)
def test_measures_agree(size: tuple[int, int, int], config: STTMConfig, seed: int, dtype: torch.dtype) -> None:
    both(natural_features(*size, 16, seed=seed, rank=6, dtype=dtype), config)


@pytest.mark.parametrize("settings", [{}, {"per_head": True}, {"weighted_avg": True}], ids=str)
@pytest.mark.parametrize("size", [(5, 14, 14), (4, 13, 17), (3, 27, 27), (3, 5, 40)])
def test_blocks_of_frames_and_of_rows_change_nothing(
    size: tuple[int, int, int], settings: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = natural_features(*size, 32)
    for config in (STTMConfig(0.85, 0.6, **settings), STTMConfig(budget=0.4, **settings)):
        whole = both(features, config)
        with monkeypatch.context() as patch:
            patch.setattr(gather, "CPU_BLOCK", 1)
            patch.setattr(products, "TABLE_BYTES", 1)
            patch.setattr(products, "TABLE_SHARE", 0)
            patch.setattr(grids, "WHOLE_FRAME", 40)
            with measured_by("products"):
                blocks = grids.grid_for(*size[1:], 1, "reference", features.device).blocks
                assert len(blocks) > 1
                assert blocks[-1].cells.stop == size[1] * size[2]
            pieces = both(features, config)
        assert torch.equal(pieces.features, whole.features)


def test_a_frame_beyond_the_limit_is_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    features, config = natural_features(2, 2, 5000, 8), STTMConfig(0.85, 0.6)
    monkeypatch.setattr(similarity, "measure_by_products", None)
    assert 0 < len(merge_by("products", features, config)) < 20_000


@pytest.mark.parametrize("frames", [2, 3, 64, 65, 200, 1024])
def test_still_videos_of_any_length_are_one_chain(frames: int) -> None:
    frame = torch.randn(1, 3, 4, 8, generator=torch.Generator().manual_seed(0))
    assert len(both(frame.expand(frames, -1, -1, -1), STTMConfig(1.5, 0.9))) == 12


def test_more_rounds_than_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    features = natural_features(40, 7, 9, 16, rank=6)
    monkeypatch.setattr(cluster, "_usual_rounds", lambda similarities: 1)
    for config in (STTMConfig(0.8, 0.4), STTMConfig(budget=0.3)):
        both(features, config)


def test_a_budget_off_the_diagonal_and_one_below_the_floor() -> None:
    """A still video, whose shares jump on the diagonal, and one that cannot be reduced so far."""
    frame = torch.randn(1, 6, 10, 16, generator=torch.Generator().manual_seed(3))
    assert both(frame.expand(40, -1, -1, -1), STTMConfig(budget=0.5)).budget == 0.5
    noise = torch.randn(3, 6, 10, 16, generator=torch.Generator().manual_seed(3))
    with pytest.warns(BudgetWarning, match="below what this video allows"):
        both(noise, STTMConfig(budget=0.01))
