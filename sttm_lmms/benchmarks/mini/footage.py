"""Footage for needles to hide in: textures under a moving camera, with cuts and noise, from a seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

TEXTURE_SIZE = 128


@dataclass(frozen=True)
class Scene:
    """One shot: a texture seen by a camera that pans, sways and zooms.

    Attributes:
        texture: ``[3, S, S]`` float32 in [0, 1].
        start, velocity: centre of the view at time 0 and its motion per second, in texture widths.
        zoom, zoom_rate: half extent of the view in texture widths at time 0, and its relative change per second.
        sway: amplitude (texture widths) and frequency (radians per second) of the hand's shake.
    """

    texture: torch.Tensor
    start: tuple[float, float]
    velocity: tuple[float, float]
    zoom: float
    zoom_rate: float
    sway: tuple[float, float]

    def render(self, times: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Frames ``[n, 3, height, width]`` float32 in [0, 1] at ``times`` ``[n]`` (seconds)."""
        swing = self.sway[0] * torch.sin(self.sway[1] * times)
        centre_x = self.start[0] + self.velocity[0] * times + swing
        centre_y = self.start[1] + self.velocity[1] * times + 0.7 * swing
        extent = self.zoom * torch.exp(self.zoom_rate * times)
        x = torch.linspace(-1, 1, width)
        y = torch.linspace(-1, 1, height)
        grid_x = (centre_x[:, None] + extent[:, None] * x)[:, None, :].expand(-1, height, -1)
        grid_y = (centre_y[:, None] + extent[:, None] * y)[:, :, None].expand(-1, -1, width)
        grid = torch.stack((grid_x, grid_y), -1)
        texture = self.texture.expand(len(times), -1, -1, -1)
        return F.grid_sample(texture, grid, padding_mode="reflection", align_corners=False)


@dataclass(frozen=True)
class Footage:
    """Shots one after the other: ``scenes[i]`` starts at ``starts[i]`` seconds."""

    scenes: tuple[Scene, ...]
    starts: tuple[float, ...]
    noise: float

    def render(self, times: np.ndarray, height: int, width: int) -> torch.Tensor:
        """Frames ``[n, 3, height, width]`` float32 in [0, 1] at increasing ``times`` (seconds), without noise."""
        shot = np.searchsorted(np.asarray(self.starts), times, side="right") - 1
        parts = []
        for i in np.unique(shot):
            local = torch.as_tensor(times[shot == i] - self.starts[i], dtype=torch.float32)
            parts.append(self.scenes[i].render(local, height, width))
        return torch.cat(parts)


def random_texture(rng: np.random.Generator) -> torch.Tensor:
    """Muted texture ``[3, S, S]``: several octaves of noise with soft-edged patches on top.

    Colours stay close to grey, so that the saturated needles can be told from every texture.
    """
    size = TEXTURE_SIZE
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


def random_scene(rng: np.random.Generator, *, still: bool = False) -> Scene:
    """One shot. ``still`` keeps the camera at rest (an inserted picture)."""
    speed = 0.0 if still else float(rng.uniform(0.0, 0.12))
    angle = float(rng.uniform(0, 2 * np.pi))
    return Scene(
        texture=random_texture(rng),
        start=(float(rng.uniform(-0.5, 0.5)), float(rng.uniform(-0.5, 0.5))),
        velocity=(speed * float(np.cos(angle)), speed * float(np.sin(angle))),
        zoom=float(rng.uniform(0.25, 0.7)),
        zoom_rate=0.0 if still else float(rng.uniform(-0.04, 0.04)),
        sway=(0.0 if still else float(rng.uniform(0, 0.02)), float(rng.uniform(1, 4))),
    )


def random_footage(rng: np.random.Generator, seconds: float) -> Footage:
    """Footage of ``seconds`` with up to three cuts."""
    cuts = sorted(rng.uniform(0.5, max(seconds, 1.0), int(rng.integers(0, 4))).tolist())
    starts = (0.0, *cuts)
    return Footage(tuple(random_scene(rng) for _ in starts), starts, noise=float(rng.uniform(0.0, 0.03)))
