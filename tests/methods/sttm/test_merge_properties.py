"""What holds for every video, threshold, dtype and device."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sttm_lmms.methods.sttm import STTMConfig, merge_video_tokens
from sttm_lmms.testing.synthetic import natural_features

SIZES = st.tuples(st.integers(1, 6), st.integers(1, 15), st.integers(1, 15))
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA"))]


def video(size: tuple[int, int, int], seed: int, channels: int = 8) -> torch.Tensor:
    return natural_features(*size, channels, seed=seed, rank=4)


@settings(max_examples=100, deadline=None)
@given(
    size=SIZES,
    seed=st.integers(0, 1000),
    spatial=st.floats(-1, 1.1),
    temporal=st.floats(-1, 1.1),
    root_level=st.integers(0, 4),
    weighted_avg=st.booleans(),
)
def test_every_cell_is_owned_once(
    size: tuple[int, int, int], seed: int, spatial: float, temporal: float, root_level: int, weighted_avg: bool
) -> None:
    config = STTMConfig(spatial, temporal, root_level=root_level, weighted_avg=weighted_avg)
    merged = merge_video_tokens(video(size, seed), config)
    _, height, width = merged.grid
    t, y0, x0, y1, x1 = merged.boxes.unbind(1)

    assert merged.grid == size
    assert merged.counts.sum() == merged.source_map.numel()
    assert torch.equal(torch.bincount(merged.source_map.flatten(), minlength=len(merged)), merged.counts)
    assert (((t * height + y0) * width + x0).diff() > 0).all(), "sorted by (t, y, x)"
    assert ((y0 < y1) & (x0 < x1) & (y1 <= height) & (x1 <= width)).all()
    assert (merged.counts >= (y1 - y0) * (x1 - x0)).all()
    for number, (t_, a, b, c, d) in enumerate(merged.boxes.tolist()):
        assert (merged.source_map[t_, a:c, b:d] == number).all(), "a token stands for the cells of its own box"


@settings(max_examples=40, deadline=None)
@given(size=SIZES, seed=st.integers(0, 1000), spatial=st.floats(-1, 1.1))
def test_without_the_temporal_step_tokens_are_their_boxes(
    size: tuple[int, int, int], seed: int, spatial: float
) -> None:
    merged = merge_video_tokens(video(size, seed), STTMConfig(spatial, 0.0))
    _, y0, x0, y1, x1 = merged.boxes.unbind(1)
    assert torch.equal(merged.counts, (y1 - y0) * (x1 - x0))


@settings(max_examples=40, deadline=None)
@given(size=SIZES, seed=st.integers(0, 1000), low=st.floats(-1, 1.1), high=st.floats(-1, 1.1))
def test_a_higher_spatial_threshold_keeps_no_fewer_tokens(
    size: tuple[int, int, int], seed: int, low: float, high: float
) -> None:
    low, high = sorted((low, high))
    features = video(size, seed)
    assert len(merge_video_tokens(features, STTMConfig(low, 0))) <= len(
        merge_video_tokens(features, STTMConfig(high, 0))
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted_avg", [False, True])
def test_thresholds_above_one_change_nothing(device: str, dtype: torch.dtype, weighted_avg: bool) -> None:
    features = torch.randn(3, 7, 10, 16, dtype=dtype, device=device)
    merged = merge_video_tokens(features, STTMConfig(1.5, 1.5, weighted_avg=weighted_avg))
    assert torch.equal(merged.features.view_as(features), features)
    assert torch.equal(merged.source_map.flatten(), torch.arange(210, device=device))
    assert (merged.counts == 1).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_agree(device: str, dtype: torch.dtype) -> None:
    """Half precision moves similarities by about its resolution, so a few decisions differ, not
    more."""
    features = natural_features(8, 14, 14, 64, device=device)
    exact = merge_video_tokens(features, STTMConfig(0.85, 0.6))
    merged = merge_video_tokens(features.to(dtype), STTMConfig(0.85, 0.6))
    assert merged.features.dtype == dtype
    assert merged.features.device == features.device
    assert abs(len(merged) - len(exact)) <= 0.01 * features[..., 0].numel()
    means = torch.stack([features.flatten(0, 2)[merged.source_map.flatten() == i].mean(0) for i in range(len(merged))])
    assert (merged.features.float() - means).norm() < 0.3 * means.norm()


def test_long_chains_are_averaged_in_float32() -> None:
    """Summed up in bfloat16, the mean of 300 equal frames would come out as less than the frame."""
    frame = torch.full((1, 2, 2, 8), 1.0078125, dtype=torch.bfloat16)
    merged = merge_video_tokens(frame.expand(300, -1, -1, -1), STTMConfig(1.5, 0.9))
    assert len(merged) == 4
    assert torch.equal(merged.features, frame.view(4, 8))


def test_large_half_precision_sums_do_not_overflow() -> None:
    features = torch.full((4, 7, 6, 8), 30_000.0, dtype=torch.float16)
    merged = merge_video_tokens(features, STTMConfig(0.5, 0.5, root_level=0, weighted_avg=True))
    assert merged.features.isfinite().all()
    assert len(merged) < 168


@pytest.mark.parametrize("members", [128, 180])
def test_long_groups_in_bfloat16_are_summed_in_float32(members: int) -> None:
    """One cell over many frames; added one by one in bfloat16, as the published code does, digits
    are lost."""
    torch.manual_seed(0)
    cells = (torch.randn(512) + 0.3 * torch.randn(members, 512)).bfloat16()
    merged = merge_video_tokens(cells.view(members, 1, 1, 512), STTMConfig(2.0, 0.5)).features
    assert len(merged) == 1
    exact = cells.double().mean(0)
    one_by_one = torch.zeros(512, dtype=torch.bfloat16)
    for cell in cells:
        one_by_one += cell

    def error(mean: torch.Tensor) -> float:
        return float((mean.double() - exact).norm() / exact.norm())

    assert error(merged[0]) < 0.005
    assert 0.01 < error(one_by_one / members) < 0.04


def test_the_input_is_left_alone_and_may_be_a_view() -> None:
    features = natural_features(4, 7, 9, 16)
    view = features.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    before = features.clone()
    merged = merge_video_tokens(view, STTMConfig(0.8, 0.6))
    assert torch.equal(view, before)
    assert torch.equal(merged.features, merge_video_tokens(features, STTMConfig(0.8, 0.6)).features)


def test_zero_features_are_harmless() -> None:
    merged = merge_video_tokens(torch.zeros(2, 6, 6, 4), STTMConfig(0.5, 0.5))
    assert len(merged) == 72
    assert (merged.features == 0).all()


def test_a_root_level_beyond_the_finest_is_the_finest() -> None:
    features = torch.ones(1, 7, 7, 4)
    assert len(merge_video_tokens(features, STTMConfig(0.5, 0, root_level=9))) == 49
    assert len(merge_video_tokens(features, STTMConfig(0.5, 0, root_level=0))) == 4


@pytest.mark.parametrize("shape", [(4, 4, 8), (2, 2, 2, 2, 2), (0, 2, 2, 4), (2, 0, 2, 4), (2, 2, 2, 0)])
def test_wrong_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\[T, H, W, C\]"):
        merge_video_tokens(torch.zeros(shape), STTMConfig(0.8, 0.6))


def test_integers_are_refused() -> None:
    with pytest.raises(TypeError, match="floating point"):
        merge_video_tokens(torch.zeros(2, 2, 2, 4, dtype=torch.int64), STTMConfig(0.8, 0.6))


@pytest.mark.parametrize("head_dim", [None, 0, 3])
def test_per_head_needs_a_head_dim(head_dim: int | None) -> None:
    with pytest.raises(ValueError, match="head_dim"):
        merge_video_tokens(torch.zeros(2, 2, 2, 8), STTMConfig(0.8, 0.6, per_head=True), head_dim=head_dim)
