"""Quantisation error and coverage against sums by hand."""

from __future__ import annotations

import pytest
import torch

from sttm_lmms.methods import get_method
from sttm_lmms.report import coverage as module
from sttm_lmms.report.coverage import coverage, measure, quantisation_error


def slow(features: torch.Tensor, kept: torch.Tensor, cosine: float) -> tuple[float, float]:
    mean = features.mean(0)
    left = spread = covered = 0.0
    for row in features:
        left += min(float((row - other).square().sum()) for other in kept)
        spread += float((row - mean).square().sum())
        covered += any(float(torch.cosine_similarity(row, other, dim=0)) >= cosine for other in kept)
    return left / spread, covered / len(features)


@pytest.mark.parametrize("cosine", [0.2, 0.5])
def test_against_a_loop_over_all_pairs(cosine: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", 7)
    generator = torch.Generator().manual_seed(0)
    features, kept = torch.randn(24, 5, generator=generator), torch.randn(6, 5, generator=generator)
    error, covered = slow(features, kept, cosine)
    assert quantisation_error(features, kept) == pytest.approx(error, rel=1e-5)
    assert coverage(features, kept, cosine) == pytest.approx(covered)


def test_the_ends_of_the_scales() -> None:
    features = torch.randn(40, 8, generator=torch.Generator().manual_seed(1)) + 3
    assert quantisation_error(features, features) == 0
    assert coverage(features, features) == 1
    assert quantisation_error(features, features.mean(0, keepdim=True)) == pytest.approx(1)
    assert coverage(features, -features) == 0
    assert quantisation_error(torch.ones(4, 3), torch.ones(1, 3)) == 0


def test_a_reduced_video() -> None:
    features = torch.randn(4, 3, 3, 6, generator=torch.Generator().manual_seed(2)).half()
    found = measure(features, get_method("frames")(budget=0.5))
    assert found.kept == 0.5
    kept = features.float()[[1, 3]].flatten(0, 2)
    assert found.error == pytest.approx(quantisation_error(features.float().flatten(0, 2), kept))
    assert found.coverage >= 0.5
