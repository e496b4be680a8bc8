"""Stage 1 of the Qwen2-VL-shaped model: its tower and patch merger, taught on pairs of frames, cell by cell.

One visual token stands for 28x28 pixels of two frames half a second apart. A needle belongs to the pair whose first
frame shows it: at two frames a second, that is the pair whose number is the needle's second, for every length of video.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from sttm_lmms.benchmarks.mini.footage import Footage, Scene
from sttm_lmms.benchmarks.mini.objects import GRID, OBJECTS, paint
from sttm_lmms.benchmarks.mini.scenery import TEXTURED

from .codes import HIDDEN, MAX_FRAMES
from .decoder import rotate
from .vision import degrade, scatter

SIDE = 196
PATCH = 14
MERGE = 2
WIDTH, HEADS, DEPTH = 64, 2, 2
SOURCE_SIDES = (112, 128, 144, 160)
"""Sides in pixels of the frames before they are resized to ``SIDE``: those of the videos."""
GAP = (0.5, 0.57)
"""Seconds between the two frames of a pair."""
SHOWN = {"both": 0.76, "first": 0.12, "second": 0.12}
"""In which frames of a pair a needle is seen, and how often."""


def vision_config() -> Qwen2VLVisionConfig:
    return Qwen2VLVisionConfig(depth=DEPTH, embed_dim=WIDTH, hidden_size=HIDDEN, num_heads=HEADS, mlp_ratio=4)


class PairVision(nn.Module):
    """Pairs of frames ``[n, 2, 3, 196, 196]``, normalised, to visual tokens ``[n, 49, C]``, as Qwen2-VL does it.

    The weights live in transformers' tower; this forward pass takes all pairs at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tower = Qwen2VisionTransformerPretrainedModel(vision_config())
        with torch.no_grad():
            self.tower.patch_embed.proj.weight.copy_(coarse_filters(WIDTH))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        n = len(pixels)
        hidden = F.linear(patchify(pixels), self.tower.patch_embed.proj.weight.flatten(1))
        cos, sin = axial_rotation(WIDTH // HEADS)
        for block in self.tower.blocks:
            hidden = hidden + attend(block.attn, block.norm1(hidden), cos, sin)
            hidden = hidden + block.mlp(block.norm2(hidden))
        merger = self.tower.merger
        return merger.mlp(merger.ln_q(hidden).view(n, GRID * GRID, -1))


def coarse_filters(width: int) -> torch.Tensor:
    """Random filters ``[width, 3, 2, 14, 14]``, constant over parts of about 3x3 pixels, strongest on the first frame.

    Filters that are independent at every pixel see hardly more than the mean of such smooth images at first.
    """
    coarse = torch.empty(width, 3, 4, 4).uniform_(-1, 1) / (3 * 16) ** 0.5
    fine = F.interpolate(coarse, (PATCH, PATCH), mode="bilinear") * 16 / PATCH**2
    return torch.stack((0.75 * fine, 0.25 * fine), 2)


def patchify(pixels: torch.Tensor) -> torch.Tensor:
    """``[n, 2, 3, S, S]`` to patches ``[n, 196, 3*2*14*14]``, the four patches of a token next to each other."""
    n = len(pixels)
    cut = pixels.view(n, 2, 3, GRID, MERGE, PATCH, GRID, MERGE, PATCH)
    return cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(n, (GRID * MERGE) ** 2, -1)


def axial_rotation(width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin ``[196, width]`` of the rows and columns of all patches, in the order of :func:`patchify`."""
    place = torch.arange(GRID * MERGE).view(GRID, MERGE)
    shape = (GRID, GRID, MERGE, MERGE)
    row = place[:, None, :, None].expand(shape).flatten()
    column = place[None, :, None, :].expand(shape).flatten()
    rates = 10_000.0 ** (-torch.arange(0, width // 2, 2).float() / (width // 2))
    angles = torch.cat((row[:, None] * rates, column[:, None] * rates), 1).repeat(1, 2)
    return angles.cos(), angles.sin()


def attend(module: nn.Module, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Attention within each pair, ``[n, 196, C_v]``."""
    n, length, width = x.shape
    q, k, v = module.qkv(x).view(n, length, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
    out = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v)
    return module.proj(out.transpose(1, 2).reshape(n, length, width))


def clip(rng: np.random.Generator, footage: Footage) -> torch.Tensor:
    """Sixteen pairs, one a second."""
    side, gap = int(rng.choice(SOURCE_SIDES)), float(rng.uniform(*GAP))
    times = np.arange(MAX_FRAMES)[:, None] + np.array([0.01, gap])
    return footage.render(times.flatten(), side, side).unflatten(0, (MAX_FRAMES, 2))


def view(rng: np.random.Generator, scene: Scene, side: int | None = None) -> torch.Tensor:
    """One pair of frames of a shot ``[1, 2, 3, side, side]``; now and then there is a cut between them."""
    side = side or int(rng.choice(SOURCE_SIDES))
    time, gap = float(rng.uniform(0, 8)), float(rng.uniform(*GAP))
    pair = scene.render(torch.tensor([time, time + gap]), side, side)
    if rng.random() < 0.08:
        pair[1:] = TEXTURED.scene(rng).render(torch.tensor([time]), side, side)
    return pair[None]


def paint_view(
    rng: np.random.Generator, pair: torch.Tensor, index: int, x: float, y: float, size: float
) -> torch.Tensor:
    """The pair with an object in both frames or in the first one only."""
    return paint_pair(pair, "first" if rng.random() < SHOWN["first"] else "both", index, x, y, size)


def paint_pair(pair: torch.Tensor, shown: str, index: int, x: float, y: float, size: float) -> torch.Tensor:
    """The pair with an object in the frames that ``shown`` names."""
    painted = pair.clone()
    frames = {"both": slice(0, 2), "first": slice(0, 1), "second": slice(1, 2)}[shown]
    painted[0, frames] = paint(pair[0, frames], index, x, y, size)
    return painted


def degrade_and_resize(pairs: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Drawn pairs ``[n, 2, 3, s, s]`` as they come from a video file, ``[n, 2, 3, 196, 196]`` in [0, 1]."""
    frames = degrade(pairs.flatten(0, 1), rng)
    resized = F.interpolate(frames, (SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 1)
    return resized.unflatten(0, (-1, 2))


def normalise(pairs: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return (pairs - mean) / std


def prepare(pairs: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Pairs as the tower sees them."""
    return normalise(degrade_and_resize(pairs, rng))


def pair_batch(
    rng: np.random.Generator, batch: int = 64, shots: int = 16
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``(pixels [n, 2, 3, 196, 196], labels [n, 49], mean cell colours [n, 49, 3])``, see ``vision.frame_batch``."""
    side = int(rng.choice(SOURCE_SIDES))
    scenes = [TEXTURED.scene(rng) for _ in range(shots)]
    pairs, labels = [], torch.full((batch, GRID, GRID), len(OBJECTS))
    for i in range(batch):
        pair = view(rng, scenes[int(rng.integers(len(scenes)))], side)
        for row, column, index, x, y, size in scatter(rng, GRID):
            shown = str(rng.choice(list(SHOWN), p=list(SHOWN.values())))
            pair = paint_pair(pair, shown, index, x, y, size)
            if shown != "second":
                labels[i, row, column] = index
        pairs.append(pair)
    seen = degrade_and_resize(torch.cat(pairs), rng)
    colours = F.adaptive_avg_pool2d(seen[:, 0], GRID).flatten(2).transpose(1, 2)
    return normalise(seen), labels.flatten(1), colours
