"""``STTMConfig(budget=b)``: the share that was asked for, or a warning that says what the video
allows."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from measures import measured_by

from sttm_lmms.methods.base import max_tokens
from sttm_lmms.methods.sttm import (
    BudgetWarning,
    MergedTokens,
    STTMConfig,
    calibrate,
    merge,
    merge_video_tokens,
)
from sttm_lmms.methods.sttm.grid import grid_for
from sttm_lmms.methods.sttm.search import LOWEST
from sttm_lmms.methods.sttm.similarity import measure
from sttm_lmms.testing.synthetic import natural_features

BUDGETS = (0.9, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05)
KINDS = ("random", "static", "noisy", "natural")
QUICK = [(1, 6, 10), (2, 14, 14), (8, 6, 10), (12, 13, 17), (24, 14, 14), (6, 27, 27)]
SLOW = [(180, 6, 10), (64, 14, 14), (20, 27, 27), (1, 27, 27), (40, 20, 11)]


def video(kind: str, size: tuple[int, int, int], channels: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    frame = torch.randn(1, *size[1:], channels, generator=generator)
    noise = torch.randn(*size, channels, generator=generator)
    if kind == "natural":
        return natural_features(*size, channels)
    return {"random": noise, "static": frame.expand(size[0], -1, -1, -1), "noisy": frame + 0.3 * noise}[kind]


def merge_and_warn(features: torch.Tensor, config: STTMConfig) -> tuple[MergedTokens, str]:
    """The tokens, and the budget warning or an empty string."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        merged = merge_video_tokens(features, config)
    messages = [str(w.message) for w in caught if w.category is BudgetWarning]
    assert len(messages) <= 1
    return merged, "".join(messages)


def check(features: torch.Tensor, config: STTMConfig) -> None:
    floor = len(merge_video_tokens(features, STTMConfig(*LOWEST, root_level=config.root_level)))
    tokens = features[..., 0].numel()
    for budget in BUDGETS:
        merged, warning = merge_and_warn(features, replace(config, budget=budget))
        most = max_tokens(budget, tokens)
        if floor > most:
            assert "below what this video allows" in warning
            assert len(merged) == floor
        else:
            assert not warning
            assert len(merged) == most

        found = (merged.info["spatial_threshold"], merged.info["temporal_threshold"])
        before = merge_video_tokens(features, STTMConfig(*found, root_level=config.root_level))
        assert len(before) <= len(merged)
        if len(before) == len(merged):
            assert torch.equal(before.source_map, merged.source_map)
            assert torch.equal(before.features, merged.features)
        assert merged.info["budget"] == budget


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", QUICK, ids=str)
def test_budgets(kind: str, size: tuple[int, int, int]) -> None:
    check(video(kind, size), STTMConfig(budget=0.5))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SLOW, ids=str)
def test_budgets_of_long_videos_and_large_grids(kind: str, size: tuple[int, int, int]) -> None:
    check(video(kind, size), STTMConfig(budget=0.5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    check(natural_features(16, 14, 14, 32, dtype=dtype), STTMConfig(budget=0.5))


@pytest.mark.parametrize(
    "settings", [{"weighted_avg": True}, {"per_head": True}, {"root_level": 0}, {"odd_edge": "masked"}], ids=str
)
def test_every_setting_meets_the_budget(settings: dict) -> None:
    features = natural_features(16, 14, 14, 32)
    merged = merge_video_tokens(features, STTMConfig(budget=0.3, **settings), head_dim=8)
    assert len(merged) == max_tokens(0.3, merged.source_map.numel())


def test_natural_videos_land_near_the_published_thresholds() -> None:
    features = natural_features(64, 14, 14, 64)
    for budget, spatial in ((0.5, 0.9), (0.3, 0.85)):
        info = merge_video_tokens(features, STTMConfig(budget=budget)).info
        assert abs(info["spatial_threshold"] - spatial) < 0.05
        assert abs(info["temporal_threshold"] - (spatial - 0.25)) < 0.06


def test_a_still_video_can_keep_half_of_every_frame() -> None:
    merged, warning = merge_and_warn(video("static", (40, 6, 10)), STTMConfig(budget=0.5))
    assert (merged.budget, warning) == (0.5, "")


def test_a_whole_budget_changes_nothing() -> None:
    features = torch.randn(3, 7, 7, 8)
    merged, warning = merge_and_warn(features, STTMConfig(budget=1.0))
    assert torch.equal(merged.features.view_as(features), features)
    assert not warning


def test_a_constant_video_is_split_where_thresholds_jump_over_the_budget() -> None:
    merged, warning = merge_and_warn(torch.ones(4, 14, 14, 8), STTMConfig(budget=0.4))
    assert (len(merged), warning) == (313, "")


def test_noise_says_what_it_allows() -> None:
    merged, warning = merge_and_warn(torch.randn(2, 6, 10, 16), STTMConfig(budget=0.01))
    assert f"{len(merged)} of 120 tokens" in warning


def test_single_cell() -> None:
    merged, warning = merge_and_warn(torch.ones(1, 1, 1, 4), STTMConfig(budget=0.5))
    assert len(merged) == 1
    assert "1 of 1" in warning


def test_everything_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searching, merging and splitting look up what was measured."""
    calls = []
    monkeypatch.setattr(merge, "measure", lambda *args, **settings: calls.append(args) or measure(*args, **settings))
    merged = merge_video_tokens(natural_features(6, 13, 10, 32), STTMConfig(budget=0.5))
    assert merged.info["after_spatial"] > len(merged) == 390
    assert merged.info["evaluations"] > 1
    assert len(calls) == 1


def test_calibration_meets_the_budget_on_average() -> None:
    videos = [natural_features(8, 14, 14, 32, seed=seed) for seed in range(3)] + [video("noisy", (8, 10, 9), 32)]
    thresholds = calibrate(iter(videos), 0.4, STTMConfig(budget=0.4))
    shares = [merge_video_tokens(features, STTMConfig(*thresholds)).budget for features in videos]
    assert 0.39 < sum(shares) / len(shares) <= 0.4
    assert max(shares) - min(shares) > 0.01, "one pair of thresholds gives each video its own share"


@pytest.mark.parametrize("settings", [{}, {"per_head": True, "odd_edge": "masked"}], ids=str)
def test_calibration_finds_the_same_with_both_measures_and_keeps_no_features(settings: dict) -> None:
    config = STTMConfig(budget=0.4, **settings)
    videos = [natural_features(6, 9, 8, 32, seed=seed) for seed in range(2)]
    found = []
    for way in ("gather", "products"):
        with measured_by(way):
            found.append(calibrate(videos, 0.4, config, 8))
            grid = grid_for(9, 8, 1, config.odd_edge, videos[0].device)
            values = vars(measure(videos[0], grid)).values()
            storages = [value.untyped_storage().data_ptr() for value in values if isinstance(value, torch.Tensor)]
            assert videos[0].untyped_storage().data_ptr() not in storages
    assert found[0] == found[1]


def test_calibration_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="at least one video"):
        calibrate([], 0.5, STTMConfig(budget=0.5))
    with pytest.raises(ValueError, match="below what these videos allow"):
        calibrate([torch.randn(1, 6, 10, 8)], 0.05, STTMConfig(budget=0.05))
    with pytest.raises(ValueError, match="budget"):
        calibrate([torch.randn(1, 6, 10, 8)], 0, STTMConfig(budget=0.5))


@pytest.mark.parametrize("kind", ["still", "flat"])
def test_videos_with_few_similarities_are_counted_at_few_thresholds(kind: str, measure: str) -> None:
    """Hundreds of thresholds are asked for, but they give few different sets of tokens.

    On accelerators a batch holds the next points of the search, too, whether they are needed or not.
    """
    frame = torch.ones(1, 6, 6, 8) if kind == "flat" else natural_features(1, 6, 6, 8)
    merged = merge_video_tokens(frame.expand(100, -1, -1, -1), STTMConfig(budget=0.37))
    assert len(merged) == 1332
    assert merged.info["evaluations"] < (80 if measure == "gather" else 260)
