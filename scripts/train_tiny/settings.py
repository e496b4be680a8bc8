"""What the checkpoints are measured with: videos, settings, and two oracles that know where needles are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from sttm_lmms import STTMConfig
from sttm_lmms.benchmarks.mini import MiniVideo
from sttm_lmms.benchmarks.mini.questions import Event
from sttm_lmms.demo import QWEN_VIDEO, SQUARE_SIZES, shipped
from sttm_lmms.methods import register_method
from sttm_lmms.methods.base import BudgetMethod, LayerMethod, Probe, Scratch
from sttm_lmms.methods.frames import FramesConfig
from sttm_lmms.methods.pool import PoolConfig
from sttm_lmms.methods.random import RandomConfig
from sttm_lmms.methods.sttm.budget import Profile
from sttm_lmms.methods.sttm.merge import merge_at
from sttm_lmms.methods.sttm.quadtree import build_quadtrees
from sttm_lmms.methods.sttm.search import HIGHEST, LOWEST, Thresholds
from sttm_lmms.types import Kept, Tokens
from sttm_lmms.video import VideoSettings

Oracle = Literal["needles removed", "as many others removed"]


@register_method("remove_cells")
@dataclass(frozen=True)
class RemoveCells(LayerMethod):
    """Drop the given cells ``(t, y, x)`` of a video."""

    cells: tuple[tuple[int, int, int], ...] = ()

    def reduce(self, tokens: Tokens, layer: int, probe: Probe, scratch: Scratch) -> Kept:
        stay = torch.ones(tokens.grid, dtype=torch.bool)
        for cell in self.cells:
            stay[cell] = False
        return Kept.select(tokens, stay.flatten().nonzero()[:, 0].to(tokens.features.device))


@register_method("one_half")
@dataclass(frozen=True, kw_only=True)
class OneHalfConfig(BudgetMethod):
    """STTM with one of its two steps, at a threshold that meets the budget for each video."""

    half: Literal["space", "time"]

    def reduce(self, tokens: Tokens, layer: int, probe: Probe, scratch: Scratch) -> Kept:
        """Merge in space alone or in time alone; above the budget where that merges all it can."""
        trees = build_quadtrees(tokens.as_grid(), STTMConfig(budget=self.budget))
        profile = Profile.of(trees)

        def thresholds(value: float) -> Thresholds:
            return Thresholds(value, 0.0) if self.half == "space" else Thresholds(HIGHEST.spatial, value)

        low, high = LOWEST.spatial if self.half == "space" else LOWEST.temporal, HIGHEST.spatial
        for _ in range(26):
            middle = (low + high) / 2
            low, high = (middle, high) if profile.share(thresholds(middle)) <= self.budget else (low, middle)
        return Kept.of_merged(merge_at(trees, *thresholds(low)))


@dataclass(frozen=True)
class Setting:
    """One line of the table; ``videos`` limits it to the first so many."""

    name: str
    config: Any = None
    oracle: Oracle | None = None
    reuse: Literal["prefix", "none"] = "prefix"
    videos: int | None = None


def steps_of(event: Event, times: Sequence[float], frames_per_step: int) -> set[int]:
    """Steps in time that show a needle; ``times`` are the seconds of the sampled frames."""
    return {i // frames_per_step for i, time in enumerate(times) if event.second <= time < event.second + 1}


def needle_cells(video: MiniVideo, times: Sequence[float], frames_per_step: int) -> set[tuple[int, int, int]]:
    """Every cell ``(t, y, x)`` that a needle touches."""
    cells = set()
    grid = video.scenery.grid
    for event in video.events:
        reach = event.size / 2
        rows = range(max(0, int(event.y * grid - reach)), min(grid - 1, int(event.y * grid + reach)) + 1)
        columns = range(max(0, int(event.x * grid - reach)), min(grid - 1, int(event.x * grid + reach)) + 1)
        steps = steps_of(event, times, frames_per_step)
        cells |= {(step, row, column) for step in steps for row in rows for column in columns}
    return cells


def oracle_config(cells: set[tuple[int, int, int]], grid: int, oracle: Oracle | None) -> RemoveCells | None:
    """What an oracle removes from a video of ``grid x grid`` cells with needles in ``cells``.

    None for settings that know nothing.
    """
    if oracle is None:
        return None
    if oracle == "as many others removed":
        frames = {t for t, _, _ in cells}
        others = [(t, y, x) for t in sorted(frames) for y in range(grid) for x in range(grid) if (t, y, x) not in cells]
        step = max(1, len(others) // len(cells))
        cells = set(others[::step][: len(cells)])
    return RemoveCells(cells=tuple(sorted(cells)))


@dataclass(frozen=True)
class Subject:
    """A checkpoint and the videos it is measured on.

    Attributes:
        name: of the checkpoint that comes with the package; it is used unless another is given.
        half, third: (spatial, temporal) thresholds that keep about 50% and 30%, found with ``sttm-lmms calibrate`` on
            48 videos of the train split, start layer 2.
        video: how frames are sampled and resized; frames_per_step: of one step of the token grid.
        benchmark: arguments of ``write_benchmark`` beyond its defaults.
    """

    name: str
    half: tuple[float, float]
    third: tuple[float, float]
    video: VideoSettings = field(default_factory=VideoSettings)
    frames_per_step: int = 1
    benchmark: dict[str, Any] = field(default_factory=dict)

    @property
    def checkpoint(self) -> Path:
        return shipped(self.name)

    @property
    def videos(self) -> str:
        """What its videos are called; subjects with the same ones share them."""
        return self.benchmark.get("scenery", self.name)


SUBJECTS = {
    "llava_video": Subject("llava_video", half=(1.003672, 0.977305), third=(0.995234, 0.933711)),
    "qwen2_vl": Subject(
        "qwen2_vl",
        half=(1.003203, 0.974883),
        third=(0.994883, 0.931895),
        video=VideoSettings(**QWEN_VIDEO),
        frames_per_step=2,
        benchmark={"sizes": SQUARE_SIZES, "lengths": (8, 9.5, 11, 13, 14.5, 16)},
    ),
    "llava_video_fine": Subject(
        "llava_video_fine",
        half=(0.997593, 0.945896),
        third=(0.992539, 0.919785),
        benchmark={"scenery": "plain"},
    ),
}
SIDE = 150
FEW = 100


def settings(subject: Subject) -> tuple[Setting, ...]:
    """The lines of the table."""
    half, third = (
        STTMConfig(spatial_threshold=spatial, temporal_threshold=temporal)
        for spatial, temporal in (subject.half, subject.third)
    )
    budget = STTMConfig(budget=0.3)
    return (
        Setting("all tokens"),
        Setting("STTM, budget 50%", STTMConfig(budget=0.5)),
        Setting("STTM, budget 30%", budget),
        Setting("STTM, budget 15%", STTMConfig(budget=0.15)),
        Setting("STTM, thresholds for 50%", half),
        Setting("STTM, thresholds for 30%", third),
        Setting("random tokens, 50%", RandomConfig(budget=0.5)),
        Setting("random tokens, 30%", RandomConfig(budget=0.3)),
        Setting("whole frames, 50%", FramesConfig(budget=0.5)),
        Setting("whole frames, 30%", FramesConfig(budget=0.3)),
        Setting("average pooling, 50%", PoolConfig(budget=0.5)),
        Setting("average pooling, 30%", PoolConfig(budget=0.3)),
        Setting("needle tokens removed (oracle)", RemoveCells(), "needles removed"),
        Setting("as many other tokens removed (oracle)", RemoveCells(), "as many others removed"),
        Setting("STTM, budget 30%, masked odd edges", replace(budget, odd_edge="masked"), videos=SIDE),
        Setting("STTM, budget 30%, start layer 1", replace(budget, start_layer=1), videos=SIDE),
        Setting("STTM, budget 30%, start layer 0", replace(budget, start_layer=0), videos=SIDE),
        Setting("STTM, budget 30%, reference positions", replace(budget, decode_positions="reference"), videos=SIDE),
        Setting("STTM, budget 30%, no KV reuse", budget, reuse="none", videos=SIDE),
    )


PUBLISHED = {"50%": (0.85, 0.65), "30%": (0.80, 0.60)}
"""The paper's thresholds for LLaVA-Video-7B on VNBench (tables 11 to 14)."""


def ablation(subject: Subject) -> tuple[Setting, ...]:
    """What each half of STTM does, and on fewer videos what else could have been done with as many tokens."""
    shares = {"50%": 0.5, "30%": 0.3}
    rows = [Setting("all tokens")]
    for share, budget in shares.items():
        rows += [
            Setting(f"both, {share}", STTMConfig(budget=budget)),
            Setting(f"spatial only, {share}", OneHalfConfig(budget=budget, half="space")),
            Setting(f"temporal only, {share}", OneHalfConfig(budget=budget, half="time")),
        ]
    more: list[tuple[str, Any, Oracle | None]] = [
        ("needle tokens removed (oracle)", RemoveCells(), "needles removed"),
        ("as many other tokens removed (oracle)", RemoveCells(), "as many others removed"),
    ]
    for share, budget in shares.items():
        spatial, temporal = PUBLISHED[share]
        published = STTMConfig(spatial_threshold=spatial, temporal_threshold=temporal)
        more.append((f"published thresholds for {share}", published, None))
        more.append((f"random tokens, {share}", RandomConfig(budget=budget), None))
        more.append((f"average pooling, {share}", PoolConfig(budget=budget), None))
    rows += [Setting(name, config, oracle, videos=FEW) for name, config, oracle in more]
    return tuple(rows)


TABLES = {"controls": settings, "ablation": ablation}
