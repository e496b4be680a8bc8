"""STTM gives the tokens that plain loops over nodes and pairs give."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_sttm import merge_slowly

from sttm_lmms.methods.sttm import STTMConfig, merge_video_tokens
from sttm_lmms.testing.synthetic import natural_features

CONFIGS = st.builds(
    STTMConfig,
    spatial_threshold=st.sampled_from([0.35, 0.55, 0.75, 0.9, 1.5]),
    temporal_threshold=st.sampled_from([-1.0, 0.15, 0.4, 0.65, 0.9]),
    root_level=st.integers(0, 3),
    weighted_avg=st.booleans(),
    per_head=st.booleans(),
    odd_edge=st.sampled_from(["reference", "masked"]),
)


def correlated(frames: int, height: int, width: int, seed: int) -> torch.Tensor:
    """Tokens ``[T, H, W, 8]`` with similarities on both sides of the thresholds above."""
    generator = torch.Generator().manual_seed(seed)
    parts = [(1, 1, 1), (1, height, width), (frames, 1, 1), (frames, height, width)]
    return sum(torch.randn(*part, 8, generator=generator) for part in parts)


@settings(max_examples=150, deadline=None)
@given(
    config=CONFIGS, seed=st.integers(0, 2**31), size=st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))
)
def test_equal_to_loops_on_small_grids(config: STTMConfig, seed: int, size: tuple[int, int, int]) -> None:
    features = correlated(*size, seed)
    merged = merge_video_tokens(features, config, head_dim=4)
    slow = merge_slowly(features.numpy(), config, head_dim=4)

    assert merged.boxes.tolist() == [list(token.box) for token in slow]
    assert merged.counts.tolist() == [token.count for token in slow]
    expected = torch.stack([torch.from_numpy(token.feature) for token in slow])
    torch.testing.assert_close(merged.features, expected.float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("height", range(1, 8))
@pytest.mark.parametrize("width", range(1, 8))
@pytest.mark.parametrize("odd_edge", ["reference", "masked"])
def test_weighted_averages_of_all_small_sides(height: int, width: int, odd_edge: str) -> None:
    """Also where one side is odd and the other even, which the published code cannot do."""
    features = correlated(2, height, width, seed=10 * height + width)
    config = STTMConfig(0.6, 0.6, root_level=0, weighted_avg=True, odd_edge=odd_edge)
    merged = merge_video_tokens(features, config)
    cells = [features[merged.source_map == i].mean(0) for i in range(len(merged))]
    torch.testing.assert_close(merged.features, torch.stack(cells), atol=1e-5, rtol=0)
    assert merged.boxes.tolist() == [list(token.box) for token in merge_slowly(features.numpy(), config)]


@pytest.mark.parametrize("size", [(3, 14, 14), (2, 13, 17), (4, 6, 10)])
@pytest.mark.parametrize("odd_edge", ["reference", "masked"])
def test_equal_to_loops_on_the_grids_of_models(size: tuple[int, int, int], odd_edge: str) -> None:
    features, config = natural_features(*size, 32), STTMConfig(0.85, 0.6, odd_edge=odd_edge)
    merged, slow = merge_video_tokens(features, config), merge_slowly(features.numpy(), config)
    assert 0.05 < merged.budget < 0.95
    assert merged.boxes.tolist() == [list(token.box) for token in slow]
    assert merged.counts.tolist() == [token.count for token in slow]
