"""What the camera sees of the two sets, from a seed: rough textures, or large plain areas with
detail in few places."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

ROUGH_SIZE, PLAIN_SIZE = 128, 160
"""Pixels a side."""


def rough_texture(rng: np.random.Generator) -> torch.Tensor:
    """Muted texture ``[3, S, S]``: several octaves of noise with soft-edged patches on top.

    Colours stay close to grey, so that the saturated needles can be told from every texture.
    """
    size = ROUGH_SIZE
    image = torch.full((3, size, size), float(rng.uniform(0.25, 0.7)))
    roughness = rng.uniform(0.4, 0.75)
    for octave, cells in enumerate((3, 6, 12, 24, 48)):
        noise = torch.from_numpy(rng.standard_normal((1, 3, cells, cells)).astype(np.float32))
        grey = noise.mean(1, keepdim=True) * 1.7
        mixed = grey + 0.3 * (noise - noise.mean(1, keepdim=True))
        up = F.interpolate(mixed, (size, size), mode="bicubic", align_corners=False)[0]
        image = image + 0.16 * roughness**octave * up
    axis = torch.linspace(0, 1, size)
    for _ in range(int(rng.integers(2, 8))):
        cx, cy, w, h = rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0.05, 0.25), rng.uniform(0.05, 0.25)
        border = torch.maximum((axis - cx).abs()[None, :] / w, (axis - cy).abs()[:, None] / h)
        mask = ((1 - border) / rng.uniform(0.05, 0.4) + 0.5).clamp(0, 1) * float(rng.uniform(0.4, 1.0))
        shade = rng.uniform(0.1, 0.9)
        colour = torch.tensor(shade + rng.uniform(-0.1, 0.1, 3), dtype=torch.float32)[:, None, None]
        image = image + mask * (colour - image)
    return image.clamp(0.02, 0.98)


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
    """``[3, S, S]`` float32 in [0, 1]: three to five large areas and two to four small patches of
    detail."""
    axis = (torch.arange(PLAIN_SIZE) + 0.5) / PLAIN_SIZE
    x, y = axis[None, :].expand(PLAIN_SIZE, -1), axis[:, None].expand(-1, PLAIN_SIZE)
    image = _gradient(rng, x, y)
    for _ in range(int(rng.integers(2, 5))):
        cx, cy = rng.uniform(0.1, 0.9, 2).tolist()
        if rng.random() < 0.5:  # everything on one side of a line
            angle = float(rng.uniform(0, 2 * np.pi))
            inside = (x - cx) * float(np.cos(angle)) + (y - cy) * float(np.sin(angle))
        else:
            w, h = rng.uniform(0.12, 0.35, 2).tolist()
            inside = torch.minimum(w - (x - cx).abs(), h - (y - cy).abs())
        image = torch.lerp(image, _gradient(rng, x, y), (inside * PLAIN_SIZE / 2 + 0.5).clamp(0, 1))
    for _ in range(int(rng.integers(2, 5))):
        cx, cy, radius = rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.9), rng.uniform(0.03, 0.07)
        grain = torch.from_numpy(rng.normal(0, 0.28, (1, 1, PLAIN_SIZE // 4, PLAIN_SIZE // 4)).astype(np.float32))
        detail = F.interpolate(grain, (PLAIN_SIZE, PLAIN_SIZE), mode="nearest")[0]
        spot = ((radius - ((x - cx) ** 2 + (y - cy) ** 2).sqrt()) * PLAIN_SIZE / 2 + 0.5).clamp(0, 1)
        image = image + spot * detail
    return image.clamp(0.02, 0.98)
