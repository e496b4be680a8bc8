"""How much merging asks of a GPU, as exact numbers, on real shapes without a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from counting import Work, made_up_gpu

from sttm_lmms.methods.sttm import STTMConfig, cluster, merge_video_tokens, search
from sttm_lmms.methods.sttm.grid import Grid
from sttm_lmms.methods.sttm.search import HIGHEST, LOWEST
from sttm_lmms.methods.sttm.similarity import Similarities, Thresholds, TokenCount

Size = tuple[int, int, int, int]
THRESHOLDS = STTMConfig(0.9, 0.65)
INPUT = 2 * 128 * 14 * 14 * 3584
"""Bytes of the video that most of these numbers are about."""


@pytest.fixture(autouse=True)
def measure() -> str:
    """Instead of the fixture of the folder: the device decides."""
    return "default"


def work_of(size: Size, config: STTMConfig, monkeypatch: pytest.MonkeyPatch, kept: float = 0.5) -> tuple[Work, int]:
    """The work of a warm merge of a bfloat16 video, and its host reads."""
    reads = []
    whole = size[0] * size[1] * size[2]
    tokens = int(kept * whole)

    def to_host(values: torch.Tensor) -> list:
        reads.append(values)
        _, rounds, points = values.shape
        return [[[whole] * points, *[[tokens] * points] * (rounds - 1)], [[whole] * points] * rounds]

    def smooth(point: Thresholds) -> float:
        return 0.01 + 0.98 * (point.spatial - LOWEST.spatial) / (HIGHEST.spatial - LOWEST.spatial)

    def count(similarities: Similarities, grid: Grid, points: Sequence[Thresholds]) -> None:
        new = [point for point in points if point not in similarities.counts]
        original(similarities, grid, points)
        similarities.counts.update((point, TokenCount(int(smooth(point) * whole), whole, 5)) for point in new)

    original = search.count_tokens
    monkeypatch.setattr(cluster, "to_host", to_host)
    monkeypatch.setattr(search, "count_tokens", count)
    with made_up_gpu():
        features = torch.empty(*size, dtype=torch.bfloat16, device="cuda")
        merge_video_tokens(features, config, head_dim=128)
        reads.clear()
        with Work() as work:
            merge_video_tokens(features, config, head_dim=128)
    monkeypatch.undo()
    return work, len(reads)


@pytest.mark.parametrize(
    ("size", "operations", "views"),
    [
        ((1, 14, 14, 3584), 46, 25),
        ((16, 14, 14, 3584), 82, 44),
        ((128, 14, 14, 3584), 85, 44),
        ((128, 13, 17, 3584), 85, 44),
        ((128, 27, 27, 3584), 114, 99),
        ((128, 14, 14, 896), 95, 50),
    ],
    ids=str,
)
def test_thresholds(size: Size, operations: int, views: int, monkeypatch: pytest.MonkeyPatch) -> None:
    work, reads = work_of(size, THRESHOLDS, monkeypatch)
    assert (work.total, work.views, reads) == (operations, views, 1)


@pytest.mark.parametrize("settings", [{}, {"weighted_avg": True}], ids=str)
@pytest.mark.parametrize("grid", [(14, 14), (27, 27)])
def test_more_frames_cost_no_more_operations_but_for_rounds(
    grid: tuple[int, int], settings: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = STTMConfig(0.9, 0.65, **settings)
    (few, _), (many, reads) = (work_of((frames, *grid, 3584), config, monkeypatch) for frames in (256, 1024))
    assert many.views == few.views
    assert many.total - few.total == 6
    assert reads == 1


def test_few_channels_do_not_make_a_budget_dear(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is counted at once depends on the input's bytes, of which such a video has next to
    none."""
    narrow, wide = (work_of((16, 14, 14, channels), STTMConfig(budget=0.5), monkeypatch)[0] for channels in (64, 3584))
    assert narrow.total - wide.total <= 40


@pytest.mark.parametrize("budget", [0.5, 0.3])
def test_budget(budget: float, monkeypatch: pytest.MonkeyPatch) -> None:
    work, reads = work_of((128, 14, 14, 3584), STTMConfig(budget=budget), monkeypatch)
    assert (work.total, work.views, reads) == (203, 82, 3)
    assert work.peak <= 1.5 * INPUT


@pytest.mark.parametrize(
    ("size", "kept", "settings"),
    [
        ((128, 14, 14, 3584), 0.5, {}),
        ((128, 14, 14, 3584), 1.0, {}),
        ((128, 14, 14, 3584), 0.5, {"per_head": True}),
        ((128, 27, 27, 3584), 0.5, {"weighted_avg": True}),
        ((1024, 13, 17, 3584), 0.5, {"root_level": 0}),
        ((128, 14, 14, 896), 0.5, {}),
    ],
    ids=str,
)
def test_memory(size: Size, kept: float, settings: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 1.5 times the input on top of it, the result included."""
    work, _ = work_of(size, STTMConfig(0.9, 0.65, **settings), monkeypatch, kept)
    input_bytes = 2 * torch.Size(size).numel()
    assert kept * input_bytes < work.peak <= 1.5 * input_bytes


def test_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fourteen times the input; the sparse path moves about fifty times as much."""
    work, _ = work_of((128, 14, 14, 3584), THRESHOLDS, monkeypatch)
    assert work.moved / INPUT == pytest.approx(14.0, abs=0.1)


def test_the_counter_refuses_what_makes_the_host_wait() -> None:
    mask = torch.tensor([True, False])
    for wait in (mask.nonzero, lambda: mask[mask], lambda: bool(mask[0]), lambda: torch.equal(mask, mask)):
        with Work(), pytest.raises(AssertionError, match="wait"):
            wait()
