"""The kernel in Triton's interpreter against torch's operations; run by test_kernels.py with TRITON_INTERPRET=1."""

from __future__ import annotations

import json
import math
from importlib import import_module
from pathlib import Path

import pytest
import test_golden_merge as golden
import torch
from safetensors.torch import load_file

from sttm_lmms.methods.sttm import STTMConfig, dense_kernels, merge, merge_video_tokens
from sttm_lmms.methods.sttm.dense import _counts
from sttm_lmms.methods.sttm.dense_similarity import Measured, measure
from sttm_lmms.methods.sttm.dense_tables import Tables, tables_for
from sttm_lmms.methods.sttm.dense_union import tokens_at
from sttm_lmms.methods.sttm.search import HIGHEST, LOWEST, Thresholds
from sttm_lmms.testing.synthetic import natural_features

ROUNDS = 12  # enough for every video here
OFF = Thresholds(0.85, math.inf)
VIDEOS = [
    # frames, height, width, root level, odd edge, dtype
    (1, 4, 4, 0, "reference", torch.float32),
    (2, 5, 7, 1, "reference", torch.bfloat16),
    (3, 5, 7, 0, "masked", torch.float32),
    (4, 14, 14, 1, "reference", torch.bfloat16),
    (5, 1, 1, 0, "reference", torch.float32),
    (6, 2, 9, 3, "masked", torch.bfloat16),
    (7, 4, 4, 2, "reference", torch.float32),
    (8, 6, 10, 0, "masked", torch.bfloat16),
    (9, 13, 17, 1, "masked", torch.float32),
]


@pytest.fixture(autouse=True)
def path() -> str:
    """Instead of the fixture of the folder: these tests name the path."""
    return "both"


def measured_video(features: torch.Tensor, root_level: int = 1, odd_edge: str = "reference") -> tuple[Measured, Tables]:
    tables = tables_for(*features.shape[1:3], root_level, odd_edge, features.device)
    temporal = len(features) > 1
    return measure(features, tables, weighted_avg=False, head_dim=None, temporal=temporal), tables


def check(measured: Measured, tables: Tables, points: list[Thresholds]) -> None:
    """Labels one pair of thresholds at a time and counts of all of them at once are those of torch's operations."""
    expected = []
    for point in points:
        labels, link, numbers = dense_kernels.tokens_at(measured, tables, *point)
        tokens = tokens_at(measured, tables, *point, rounds=ROUNDS)
        (count,) = _counts(tokens.counts().tolist(), tokens.cell.numel())
        assert count is not None
        assert torch.equal(labels.level, tokens.level)
        assert torch.equal(labels.anchor, tokens.anchor)
        assert torch.equal(labels.owner, tokens.owner(count.rounds))
        assert (link is None) == (tokens.link is None)
        if link is not None and tokens.link is not None:
            assert torch.equal(link.nan_to_num(7), tokens.link.flatten().nan_to_num(7))
        expected.append([count.kept, count.spatial, count.rounds])
        assert numbers.tolist() == expected[-1]
    assert dense_kernels.count_at(measured, tables, torch.tensor(points)).T.tolist() == expected


@pytest.mark.parametrize(("frames", "height", "width", "root_level", "odd_edge", "dtype"), VIDEOS)
def test_same_labels_and_counts(
    frames: int, height: int, width: int, root_level: int, odd_edge: str, dtype: torch.dtype
) -> None:
    features = natural_features(frames, height, width, 16, seed=frames, rank=5, dtype=dtype)
    measured, tables = measured_video(features, root_level, odd_edge)
    points = [Thresholds(0.85, 0.6), Thresholds(0.95, 0.3), OFF, LOWEST, HIGHEST]
    # Thresholds that are themselves similarities: a node with it is not split, a pair with it is merged.
    spatial = measured.agreement.median().item() if measured.agreement.numel() else 0.5
    link = tokens_at(measured, tables, spatial, 0.5, rounds=ROUNDS).link
    points.append(Thresholds(spatial, 0.5 if link is None else link.median().item()))
    check(measured, tables, points)


def test_sixteen_pairs_of_thresholds_at_once() -> None:
    measured, tables = measured_video(natural_features(5, 6, 5, 16, rank=4))
    generator = torch.Generator().manual_seed(0)
    check(measured, tables, [Thresholds(*pair) for pair in torch.rand(16, 2, generator=generator).tolist()])


def test_several_tiles_and_many_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain through 40 frames, cells in tiles that frames do not fill, and videos of random similarities."""
    monkeypatch.setattr(dense_kernels, "BLOCK", 64)
    generator = torch.Generator().manual_seed(1)
    still = torch.randn(1, 3, 5, 8, generator=generator).expand(40, -1, -1, -1)
    check(*measured_video(still), [Thresholds(1.5, 0.9), Thresholds(0.5, 0.9)])
    check(*measured_video(torch.randn(12, 5, 7, 3, generator=generator), 0), [Thresholds(0.6, 0.3), LOWEST])


def test_zeros_and_not_a_number() -> None:
    features = natural_features(4, 5, 6, 8, rank=4)
    features[0, 1], features[2], features[3, 0, 0, 0] = 0, 0, math.nan
    check(*measured_video(features, 0), [Thresholds(0.8, 0.5), Thresholds(0.0, 1e-6), OFF])


@pytest.mark.filterwarnings("ignore::sttm_lmms.methods.sttm.BudgetWarning")
@pytest.mark.parametrize(
    ("size", "config"),
    [
        ((4, 6, 6), STTMConfig(0.85, 0.6)),
        ((4, 6, 6), STTMConfig(0.85, 0.0, weighted_avg=True)),
        ((5, 5, 7), STTMConfig(budget=0.5, per_head=True)),
        ((1, 9, 9), STTMConfig(budget=0.3)),
    ],
    ids=str,
)
def test_same_merged_tokens(size: tuple[int, int, int], config: STTMConfig) -> None:
    features = natural_features(*size, 16, rank=6, dtype=torch.bfloat16)
    with_kernel, dense = (merge_video_tokens(features, config, 8, _path=path) for path in ("triton", "dense"))
    for field in ("features", "boxes", "counts", "source_map", "info"):
        ours, theirs = (getattr(merged, field) for merged in (with_kernel, dense))
        assert ours == theirs if field == "info" else torch.equal(ours, theirs)


@pytest.mark.parametrize("case", golden.CASES[::24], ids=lambda case: case["name"])
def test_recorded_outputs_of_the_published_merger(case: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge, "default_path", lambda device: "triton")
    golden.test_golden_case(case, load_file(golden.FOLDER / "visible.safetensors"))


def test_the_benchmark_times_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "scripts"))
    size = ["--frames=2", "--grids=3x3", "--channels=8", "--dtypes=float32", "--shares=0.5", "--repeats=1"]
    import_module("bench_merge").main(["--device", "cpu", "--triton", "--out", str(tmp_path), *size])
    (row,) = json.loads((tmp_path / "cpu.json").read_text())["rows"]
    assert row["triton_equal"] is True
    assert min(row["triton_ms"], row["triton_with_search_ms"]) > 0
