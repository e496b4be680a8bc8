"""The two sets of Mini-VNBench: what the needles lie in, how small they are, how the videos are shaped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sttm_lmms.benchmarks.mini.footage import Footage, Scene, random_footage, random_scene
from sttm_lmms.benchmarks.mini.objects import GRID
from sttm_lmms.benchmarks.mini.plain import plain_footage, plain_scene


class MakeScene(Protocol):
    """Draws one shot."""

    def __call__(self, rng: np.random.Generator, *, still: bool = False) -> Scene: ...


@dataclass(frozen=True)
class Scenery:
    """One set.

    Attributes:
        footage: draws footage of so many seconds.
        scene: draws one shot.
        grid: cells a side that needles are placed on and measured in.
        lengths: in seconds, to draw from.
        sizes: (width, height) in pixels, to draw from.
        rates: frames a second, to draw from.
    """

    footage: Callable[[np.random.Generator, float], Footage]
    scene: MakeScene
    grid: int
    lengths: tuple[float, ...]
    sizes: tuple[tuple[int, int], ...]
    rates: tuple[float, ...]


TEXTURED = Scenery(
    footage=random_footage,
    scene=random_scene,
    grid=GRID,
    lengths=(7, 8.5, 10, 12, 13.5, 15),
    sizes=((160, 120), (192, 108), (128, 128), (112, 176)),
    rates=(8.0, 10.0, 12.5, 15.0),
)
PLAIN = Scenery(
    footage=plain_footage,
    scene=plain_scene,
    grid=2 * GRID,
    lengths=(5, 5.5, 6, 6.5, 7),
    sizes=((224, 168), (256, 144), (192, 192), (160, 240)),
    rates=(5.0, 6.0, 8.0),
)
SCENERIES: dict[str, Scenery] = {"textured": TEXTURED, "plain": PLAIN}
