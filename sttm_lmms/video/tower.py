"""Patch features of clips from any vision tower that transformers loads, without a language
model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from sttm_lmms.video.reading import probe, read_frames

Encoder = Callable[[np.ndarray], torch.Tensor]
"""Frames ``[T, H, W, 3]`` uint8 to features ``[T, h, w, C]``."""


def vision_tower(name: str) -> Encoder:
    """The last layer of a vision tower on the hub or in a folder (SigLIP, CLIP, DINOv2, ConvNeXt,
    ...), as a square grid of patches.

    Raises:
        OSError: there is no such checkpoint, or it has no image processor.
        ValueError: its output is not a square grid of patches.
    """
    from transformers import AutoImageProcessor, AutoModel

    processor, model = AutoImageProcessor.from_pretrained(name), AutoModel.from_pretrained(name).eval()
    model = getattr(model, "vision_model", model)

    def encode(frames: np.ndarray) -> torch.Tensor:
        states = model(**processor(list(frames), return_tensors="pt")).last_hidden_state
        if states.ndim == 4:  # feature maps of a convolutional network
            return states.movedim(1, -1)
        side = int(states.shape[1] ** 0.5)
        # A class token and registers stand in front of the patches; more than a handful are patches.
        if states.shape[1] - side * side > 5:
            raise ValueError(f"{name}: {states.shape[1]} vectors a frame are not a square grid of patches")
        return states[:, states.shape[1] - side * side :].unflatten(1, (side, side))

    return encode


@torch.inference_mode()
def clip_features(clip: Path, encode: Encoder, frames: int) -> torch.Tensor:
    """``[T, h, w, C]`` float16 of so many frames, spread evenly over the clip."""
    info = probe(clip)
    numbers = np.linspace(0, info.total_frames - 1, frames).round().astype(int).tolist()
    return encode(read_frames(info, numbers).frames).half().contiguous()
