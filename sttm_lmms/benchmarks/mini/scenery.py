"""The two sets of Mini-VNBench: what the needles lie in, how small they are, how the videos are
shaped.

In ``TEXTURED`` a cell resembles itself a second later more than its neighbours. In ``PLAIN``, with
large plain areas and a camera that moves on, it is the other way round: a merging method that works
within frames has much to do there, one that works across frames has little.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from sttm_lmms.benchmarks.mini.footage import Footage, Scene
from sttm_lmms.benchmarks.mini.objects import GRID
from sttm_lmms.benchmarks.mini.textures import plain_texture, rough_texture


@dataclass(frozen=True)
class Scenery:
    """One set.

    Attributes:
        texture: draws what one shot shows.
        cuts: draws the seconds at which shots begin, the first at 0, for footage of so many
            seconds.
        speed, zoom: of the camera, from and to; zoom_rate, sway: at most (see ``Scene``).
        noise: of the footage, at most.
        grid: cells a side that needles are placed on and measured in.
        lengths: in seconds, to draw from.
        sizes: (width, height) in pixels, to draw from.
        rates: frames a second, to draw from.
    """

    texture: Callable[[np.random.Generator], torch.Tensor]
    cuts: Callable[[np.random.Generator, float], tuple[float, ...]]
    speed: tuple[float, float]
    zoom: tuple[float, float]
    zoom_rate: float
    sway: float
    noise: float
    grid: int
    lengths: tuple[float, ...]
    sizes: tuple[tuple[int, int], ...]
    rates: tuple[float, ...]

    def scene(self, rng: np.random.Generator, *, still: bool = False) -> Scene:
        """One shot. ``still`` keeps the camera at rest (an inserted picture)."""
        speed = 0.0 if still else float(rng.uniform(*self.speed))
        angle = float(rng.uniform(0, 2 * np.pi))
        return Scene(
            texture=self.texture(rng),
            start=(float(rng.uniform(-0.5, 0.5)), float(rng.uniform(-0.5, 0.5))),
            velocity=(speed * float(np.cos(angle)), speed * float(np.sin(angle))),
            zoom=float(rng.uniform(*self.zoom)),
            zoom_rate=0.0 if still else float(rng.uniform(-self.zoom_rate, self.zoom_rate)),
            sway=(0.0 if still else float(rng.uniform(0, self.sway)), float(rng.uniform(1, 4))),
        )

    def footage(self, rng: np.random.Generator, seconds: float) -> Footage:
        """Shots for ``seconds``."""
        starts = self.cuts(rng, seconds)
        return Footage(tuple(self.scene(rng) for _ in starts), starts, noise=float(rng.uniform(0.0, self.noise)))


def few_cuts(rng: np.random.Generator, seconds: float) -> tuple[float, ...]:
    """Up to three cuts."""
    return (0.0, *sorted(rng.uniform(0.5, max(seconds, 1.0), int(rng.integers(0, 4))).tolist()))


def steady_cuts(rng: np.random.Generator, seconds: float) -> tuple[float, ...]:
    """A cut every second or two."""
    starts = [0.0]
    while (start := starts[-1] + float(rng.uniform(0.8, 2.2))) < seconds:
        starts.append(start)
    return tuple(starts)


TEXTURED = Scenery(
    texture=rough_texture,
    cuts=few_cuts,
    speed=(0.0, 0.12),
    zoom=(0.25, 0.7),
    zoom_rate=0.04,
    sway=0.02,
    noise=0.03,
    grid=GRID,
    lengths=(7, 8.5, 10, 12, 13.5, 15),
    sizes=((160, 120), (192, 108), (128, 128), (112, 176)),
    rates=(8.0, 10.0, 12.5, 15.0),
)
PLAIN = Scenery(
    texture=plain_texture,
    cuts=steady_cuts,
    speed=(0.25, 0.6),
    zoom=(0.4, 0.65),
    zoom_rate=0.1,
    sway=0.03,
    noise=0.015,
    grid=2 * GRID,
    lengths=(5, 5.5, 6, 6.5, 7),
    sizes=((224, 168), (256, 144), (192, 192), (160, 240)),
    rates=(5.0, 6.0, 8.0),
)
SCENERIES: dict[str, Scenery] = {"textured": TEXTURED, "plain": PLAIN}
