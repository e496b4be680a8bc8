"""Stage 1: the SigLIP tower and the projector, taught on single frames, cell by cell."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from sttm_lmms.benchmarks.mini.footage import Footage, Scene
from sttm_lmms.benchmarks.mini.objects import GRID, OBJECTS, paint
from sttm_lmms.benchmarks.mini.questions import SIZES
from sttm_lmms.benchmarks.mini.scenery import TEXTURED

from .codes import HIDDEN, MAX_FRAMES, Codes

PATCH = 4
CELL = 2 * PATCH
"""Pixels a side of a visual token: the family pools two by two patches."""
IMAGE = GRID * CELL
WIDTH = 64


def vision_config() -> SiglipVisionConfig:
    return SiglipVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=IMAGE,
        patch_size=PATCH,
        vision_use_head=False,
    )


class Vision(nn.Module):
    """Frames ``[n, 3, 56, 56]`` in [-1, 1] to visual tokens ``[n, 49, C]``, as LLaVA-Video does
    it."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = SiglipVisionModel(vision_config())
        self.projector = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN))
        inner = self.inner
        inner.embeddings.position_embedding.weight.data.copy_(grid_waves(2 * GRID, WIDTH))

    @property
    def inner(self) -> nn.Module:
        return getattr(self.tower, "vision_model", self.tower)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        # The last encoder layer's output, before any post layer norm, as the family takes it.
        patches = self.inner.encoder(inputs_embeds=self.inner.embeddings(pixels)).last_hidden_state
        grid = self.projector(patches).unflatten(1, (2 * GRID, -1)).permute(0, 3, 1, 2)
        pooled = F.interpolate(grid, (GRID, GRID), mode="bilinear", align_corners=False)
        return pooled.flatten(2).transpose(1, 2)


def grid_waves(side: int, width: int) -> torch.Tensor:
    """Sine and cosine position codes ``[side*side, width]``: a start from which neighbours are easy
    to find."""
    axis = torch.arange(side).float()
    rates = 3.14 / 2 ** torch.linspace(0.5, 4, width // 4)
    waves = torch.cat(((axis[:, None] * rates).sin(), (axis[:, None] * rates).cos()), 1)
    y = waves[:, None].expand(side, side, -1)
    x = waves[None].expand(side, side, -1)
    return 0.5 * torch.cat((y, x), -1).reshape(side * side, width)


def degrade(frames: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """What a codec, a resize and 8 bits leave: blur, noise, light, rounding. ``[n, 3, H, W]`` in
    [0, 1]."""
    n = len(frames)
    seed = torch.Generator().manual_seed(int(rng.integers(2**31)))
    blurred = F.avg_pool2d(F.pad(frames, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    frames = torch.lerp(frames, blurred, 0.6 * torch.rand((n, 1, 1, 1), generator=seed) ** 2)
    frames = frames + 0.03 * torch.rand((n, 1, 1, 1), generator=seed) * torch.randn(frames.shape, generator=seed)
    gain = 1 + 0.06 * torch.randn((n, 1, 1, 1), generator=seed)
    return ((frames * gain).clamp(0, 1) * 255).round() / 255


def random_cell(rng: np.random.Generator, size: float) -> tuple[int, int]:
    """Row and column of the cell in which a needle of ``size`` cells may have its centre."""
    low = 0 if size <= 1.5 else 1
    return int(rng.integers(low, GRID - low)), int(rng.integers(low, GRID - low))


def scatter(rng: np.random.Generator) -> Iterator[tuple[int, int, int, float, float, float]]:
    """Up to four needles apart from each other.

    Yields:
        Row and column of the centre's cell, object, x, y, size.
    """
    taken: list[tuple[int, int]] = []
    for _ in range(int(rng.integers(0, 5))):
        size = float(rng.uniform(*SIZES))
        row, column = random_cell(rng, size)
        if any(max(abs(row - r), abs(column - c)) < 3 for r, c in taken):
            continue
        taken.append((row, column))
        index = int(rng.integers(len(OBJECTS)))
        dx, dy = rng.uniform(-0.25, 0.25, 2).tolist()
        yield row, column, index, (column + 0.5 + dx) / GRID, (row + 0.5 + dy) / GRID, size


def frame_batch(
    rng: np.random.Generator, batch: int = 64, shots: int = 16
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A few fresh shots: ``(frames [n, 3, 56, 56] in [-1, 1], labels [n, 49], mean cell colours [n,
    49, 3])``.

    A label is the object whose centre lies in the cell, or ``len(OBJECTS)`` for background.
    """
    scenes = [TEXTURED.scene(rng) for _ in range(shots)]
    frames, labels = [], torch.full((batch, GRID, GRID), len(OBJECTS))
    for i in range(batch):
        scene = scenes[int(rng.integers(len(scenes)))]
        scale = 2 if rng.random() < 0.3 else 1
        time = torch.tensor([float(rng.uniform(0, 8))])
        frame = scene.render(time, IMAGE * scale, IMAGE * scale)
        for row, column, index, x, y, size in scatter(rng):
            frame = paint(frame, index, x, y, size)
            labels[i, row, column] = index
        frames.append(F.avg_pool2d(frame, scale) if scale > 1 else frame)
    images = degrade(torch.cat(frames), rng)
    colours = F.avg_pool2d(images, CELL).flatten(2).transpose(1, 2)
    return images * 2 - 1, labels.flatten(1), colours


def clip(footage: Footage) -> torch.Tensor:
    """Sixteen frames, one a second."""
    return footage.render(np.arange(MAX_FRAMES) + 0.01, IMAGE, IMAGE)


def view(rng: np.random.Generator, scene: Scene) -> torch.Tensor:
    """One frame of a shot."""
    return scene.render(torch.tensor([float(rng.uniform(0, 8))]), IMAGE, IMAGE)


def prepare(frames: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Frames as the tower sees them, in [-1, 1]."""
    return degrade(frames, rng) * 2 - 1


def vision_loss(features: torch.Tensor, labels: torch.Tensor, colours: torch.Tensor, codes: Codes) -> torch.Tensor:
    """Classification of every cell against the fixed codes, plus the distance to the code
    itself."""
    classes = torch.cat((codes.objects, codes.background[None]))
    logits = 2 * features @ classes.T
    needle = labels < len(OBJECTS)
    weight = torch.where(needle, 1.0, 0.25)
    entropy = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(weight)
    target = codes.background_target(colours)
    target[needle] = 4 * codes.objects[labels[needle]]
    distance = (features - target).pow(2).sum(-1) / 16
    return ((entropy + distance) * weight).sum() / weight.sum()


@torch.no_grad()
def vision_scores(features: torch.Tensor, labels: torch.Tensor, codes: Codes) -> dict[str, float]:
    """Share of needles named right, colour right, shape right, and of background cells taken for a
    needle."""
    guess = (features @ torch.cat((codes.objects, codes.background[None])).T).argmax(-1)
    needle = labels < len(OBJECTS)
    g, w = guess[needle], labels[needle]
    return {
        "needle": (g == w).float().mean().item(),
        "colour": ((g % 6 == w % 6) & (g < len(OBJECTS))).float().mean().item(),
        "shape": ((g // 6 == w // 6) & (g < len(OBJECTS))).float().mean().item(),
        "false_needles": (guess[~needle] < len(OBJECTS)).float().mean().item(),
    }
