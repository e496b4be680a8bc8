"""What the checkpoint is measured with: the settings of the evaluation and two oracles that know where needles are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from sttm_lmms import MergedTokens, STTMConfig
from sttm_lmms.benchmarks.mini import MiniVideo
from sttm_lmms.benchmarks.mini.objects import GRID
from sttm_lmms.config import MethodConfig
from sttm_lmms.methods import METHODS, Method
from sttm_lmms.methods.frames import FramesConfig
from sttm_lmms.methods.pool import PoolConfig
from sttm_lmms.methods.random import RandomConfig

Oracle = Literal["needles removed", "as many others removed"]


@dataclass(frozen=True)
class RemoveCells(MethodConfig):
    """Drop the given cells ``(t, y, x)`` of a video."""

    cells: tuple[tuple[int, int, int], ...] = ()


def remove_cells(features: torch.Tensor, config: RemoveCells, head_dim: int | None = None) -> MergedTokens:
    """``features [T, H, W, C]`` without ``config.cells``."""
    t, h, w, _ = features.shape
    stay = torch.ones(t, h, w, dtype=torch.bool)
    for cell in config.cells:
        stay[cell] = False
    places = stay.nonzero()
    boxes = torch.cat((places, places[:, 1:] + 1), 1)
    source = torch.full((t, h, w), -1)
    source[stay] = torch.arange(len(places))
    return MergedTokens(features[stay.to(features.device)], boxes, torch.ones(len(places), dtype=torch.long), source)


METHODS["remove_cells"] = Method("remove_cells", f"{__name__}:RemoveCells", f"{__name__}:remove_cells")


@dataclass(frozen=True)
class Setting:
    """One line of the table; ``videos`` limits it to the first so many."""

    name: str
    config: Any = None
    oracle: Oracle | None = None
    reuse: Literal["prefix", "none"] = "prefix"
    videos: int | None = None


def needle_cells(video: MiniVideo) -> set[tuple[int, int, int]]:
    """Every cell that a needle touches."""
    cells = set()
    for event in video.events:
        reach = event.size / 2
        rows = range(max(0, int(event.y * GRID - reach)), min(GRID - 1, int(event.y * GRID + reach)) + 1)
        columns = range(max(0, int(event.x * GRID - reach)), min(GRID - 1, int(event.x * GRID + reach)) + 1)
        cells |= {(event.second, row, column) for row in rows for column in columns}
    return cells


def oracle_config(video: MiniVideo, oracle: Oracle | None) -> RemoveCells | None:
    """What an oracle removes from a video; None for settings that know nothing."""
    if oracle is None:
        return None
    cells = needle_cells(video)
    if oracle == "as many others removed":
        frames = {t for t, _, _ in cells}
        others = [(t, y, x) for t in sorted(frames) for y in range(GRID) for x in range(GRID) if (t, y, x) not in cells]
        step = max(1, len(others) // len(cells))
        cells = set(others[::step][: len(cells)])
    return RemoveCells(cells=tuple(sorted(cells)))


# Found with `sttm_lmms.merging.calibrate` on 48 videos of the train split, start layer 2.
HALF = STTMConfig(spatial_threshold=1.0032, temporal_threshold=0.9749)
THIRD = STTMConfig(spatial_threshold=0.9945, temporal_threshold=0.9301)
BUDGET = STTMConfig(budget=0.3)
SIDE = 150

SETTINGS: tuple[Setting, ...] = (
    Setting("all tokens"),
    Setting("STTM, budget 50%", STTMConfig(budget=0.5)),
    Setting("STTM, budget 30%", BUDGET),
    Setting("STTM, budget 15%", STTMConfig(budget=0.15)),
    Setting("STTM, thresholds for 50%", HALF),
    Setting("STTM, thresholds for 30%", THIRD),
    Setting("random tokens, 50%", RandomConfig(budget=0.5)),
    Setting("random tokens, 30%", RandomConfig(budget=0.3)),
    Setting("whole frames, 50%", FramesConfig(budget=0.5)),
    Setting("whole frames, 30%", FramesConfig(budget=0.3)),
    Setting("average pooling, 50%", PoolConfig(budget=0.5)),
    Setting("average pooling, 30%", PoolConfig(budget=0.3)),
    Setting("needle tokens removed (oracle)", RemoveCells(), "needles removed"),
    Setting("as many other tokens removed (oracle)", RemoveCells(), "as many others removed"),
    Setting("STTM, budget 30%, masked odd edges", replace(BUDGET, odd_edge="masked"), videos=SIDE),
    Setting("STTM, budget 30%, start layer 1", replace(BUDGET, start_layer=1), videos=SIDE),
    Setting("STTM, budget 30%, start layer 0", replace(BUDGET, start_layer=0), videos=SIDE),
    Setting("STTM, budget 30%, reference positions", replace(BUDGET, decode_positions="reference"), videos=SIDE),
    Setting("STTM, budget 30%, no KV reuse", BUDGET, reuse="none", videos=SIDE),
)
