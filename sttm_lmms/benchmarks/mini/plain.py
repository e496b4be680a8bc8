"""Footage with large plain areas: gradients with sharp borders, fine detail in few places, a camera that moves on.

Neighbouring cells of a frame look alike nearly everywhere, the same cell a second later seldom does: a merging method
that works within frames has much to do here, one that works across frames has little.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from sttm_lmms.benchmarks.mini.footage import Footage, Scene

TEXTURE_SIZE = 160


def _shade(rng: np.random.Generator, brightness: float) -> torch.Tensor:
    """A muted colour ``[3, 1, 1]``, far from the saturated ones of the needles."""
    return torch.tensor(brightness + rng.uniform(-0.1, 0.1, 3), dtype=torch.float32)[:, None, None]


def _gradient(rng: np.random.Generator, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """A slow change of colour ``[3, S, S]`` in some direction."""
    brightness = float(rng.uniform(0.08, 0.9))
    angle, change = float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(0.0, 0.5))
    ramp = (x - 0.5) * float(np.cos(angle)) + (y - 0.5) * float(np.sin(angle))
    return _shade(rng, brightness) + change * ramp


def plain_texture(rng: np.random.Generator) -> torch.Tensor:
    """``[3, S, S]`` float32 in [0, 1]: three to five large areas and two to four small patches of detail."""
    axis = (torch.arange(TEXTURE_SIZE) + 0.5) / TEXTURE_SIZE
    x, y = axis[None, :].expand(TEXTURE_SIZE, -1), axis[:, None].expand(-1, TEXTURE_SIZE)
    image = _gradient(rng, x, y)
    for _ in range(int(rng.integers(2, 5))):
        cx, cy = rng.uniform(0.1, 0.9, 2).tolist()
        if rng.random() < 0.5:  # everything on one side of a line
            angle = float(rng.uniform(0, 2 * np.pi))
            inside = (x - cx) * float(np.cos(angle)) + (y - cy) * float(np.sin(angle))
        else:
            w, h = rng.uniform(0.12, 0.35, 2).tolist()
            inside = torch.minimum(w - (x - cx).abs(), h - (y - cy).abs())
        image = torch.lerp(image, _gradient(rng, x, y), (inside * TEXTURE_SIZE / 2 + 0.5).clamp(0, 1))
    for _ in range(int(rng.integers(2, 5))):
        cx, cy, radius = rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.9), rng.uniform(0.03, 0.07)
        grain = torch.from_numpy(rng.normal(0, 0.28, (1, 1, TEXTURE_SIZE // 4, TEXTURE_SIZE // 4)).astype(np.float32))
        detail = F.interpolate(grain, (TEXTURE_SIZE, TEXTURE_SIZE), mode="nearest")[0]
        spot = ((radius - ((x - cx) ** 2 + (y - cy) ** 2).sqrt()) * TEXTURE_SIZE / 2 + 0.5).clamp(0, 1)
        image = image + spot * detail
    return image.clamp(0.02, 0.98)


def plain_scene(rng: np.random.Generator, *, still: bool = False) -> Scene:
    """One shot; ``still`` keeps the camera at rest (an inserted picture)."""
    speed, angle = 0.0 if still else float(rng.uniform(0.25, 0.6)), float(rng.uniform(0, 2 * np.pi))
    return Scene(
        texture=plain_texture(rng),
        start=(float(rng.uniform(-0.5, 0.5)), float(rng.uniform(-0.5, 0.5))),
        velocity=(speed * float(np.cos(angle)), speed * float(np.sin(angle))),
        zoom=float(rng.uniform(0.4, 0.65)),
        zoom_rate=0.0 if still else float(rng.uniform(-0.1, 0.1)),
        sway=(0.0 if still else float(rng.uniform(0, 0.03)), float(rng.uniform(1, 4))),
    )


def plain_footage(rng: np.random.Generator, seconds: float) -> Footage:
    """Footage of ``seconds`` with a cut every second or two."""
    starts = [0.0]
    while (start := starts[-1] + float(rng.uniform(0.8, 2.2))) < seconds:
        starts.append(start)
    return Footage(tuple(plain_scene(rng) for _ in starts), tuple(starts), noise=float(rng.uniform(0.0, 0.015)))
