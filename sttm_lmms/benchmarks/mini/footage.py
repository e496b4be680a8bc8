"""Footage for needles to hide in: textures under a moving camera, with cuts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Scene:
    """One shot: a texture seen by a camera that pans, sways and zooms.

    Attributes:
        texture: ``[3, S, S]`` float32 in [0, 1].
        start, velocity: centre of the view at time 0 and its motion per second, in texture widths.
        zoom, zoom_rate: half extent of the view in texture widths at time 0, and its relative
            change per second.
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
        """Frames ``[n, 3, height, width]`` float32 in [0, 1] at increasing ``times`` (seconds),
        without noise."""
        shot = np.searchsorted(np.asarray(self.starts), times, side="right") - 1
        parts = []
        for i in np.unique(shot):
            local = torch.as_tensor(times[shot == i] - self.starts[i], dtype=torch.float32)
            parts.append(self.scenes[i].render(local, height, width))
        return torch.cat(parts)
