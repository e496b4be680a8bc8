"""Made-up visual tokens for benchmarks and tests, where no checkpoint is at hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def natural_features(
    frames: int,
    height: int,
    width: int,
    channels: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
    rank: int = 48,
) -> torch.Tensor:
    """``[T, H, W, C]`` with what merging lives on: smooth regions, local detail, and slow change
    between frames.

    Sums of noise fields of several scales in space and time, rough in some places and smooth in
    others, spread over the channels by a random matrix of the given rank. At 128x14x14 the
    thresholds that keep 50% and 30% come close to those published for real videos.
    """
    generator = torch.Generator().manual_seed(seed)

    def field(t: int, h: int, w: int, depth: int) -> torch.Tensor:
        size = (max(1, min(t, frames)), max(1, min(h, height)), max(1, min(w, width)))
        noise = torch.randn(1, depth, *size, generator=generator)
        return F.interpolate(noise, size=(frames, height, width), mode="trilinear", align_corners=True)[0]

    scene = field(frames // 16 + 1, 3, 3, rank)
    detail = field(frames * 2 // 3, height // 3 + 1, width // 3 + 1, rank)
    texture = field(frames // 2 + 1, height, width, rank)
    noise = field(frames, height, width, rank)
    roughness = field(frames // 6 + 1, 5, 5, 1).mul(0.8).exp()
    latent = 0.9 * scene + roughness * (0.9 * detail + 0.35 * texture + 0.35 * noise)
    basis = torch.randn(rank, channels, generator=generator) / rank**0.5

    out = torch.empty(frames, height, width, channels, dtype=dtype, device=device)
    for frame, content in zip(out, latent.unbind(1), strict=True):
        frame.copy_(content.movedim(0, -1) @ basis)
    return out
