"""What several tests of the families need."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from sttm_lmms.video import Video

CHECKPOINTS = [
    ("llava_video", "original"),
    ("llava_video", "hf"),
    ("llava_onevision", "original"),
    ("llava_onevision", "hf"),
    ("qwen2_vl", "hf"),
]


def moving_frames(count: int, height: int, width: int) -> np.ndarray:
    """``[count, height, width, 3]``: gradients that drift, so that no two frames and no two corners
    are alike."""
    t, y, x = np.mgrid[:count, :height, :width]
    return np.stack([x + 3 * t, 2 * y + 5 * t, 7 * t + x // 2], -1).astype(np.uint8)


def clip(count: int = 5, height: int = 84, width: int = 112) -> Video:
    """A decoded video at one frame a second."""
    return Video(
        frames=moving_frames(count, height, width),
        timestamps=[float(t) for t in range(count)],
        indices=list(range(count)),
        fps=1.0,
        duration=float(count),
        path="somewhere/clip.mp4",
        sample_fps=1.0,
    )


@torch.no_grad()
def last_logits(model: Any, prepared: Any) -> torch.Tensor:
    """Logits ``[V]`` after the last token of a prepared prompt."""
    output = model(inputs_embeds=prepared.inputs_embeds, position_ids=prepared.position_ids, logits_to_keep=1)
    return output.logits[0, -1]


def copy_of(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target))


def edit(folder: Path, change) -> None:
    """Rewrite ``model.safetensors`` with ``change`` applied to its dictionary of tensors."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
