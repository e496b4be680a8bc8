"""Qwen2.5-VL: Qwen2-VL with a first position axis that counts in time.

Source: arXiv 2502.13923, section 2.1.2 (multimodal rotary positions aligned to absolute time);
window attention is handled by the vision tower.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from sttm_lmms.families.assemble import Assembled
from sttm_lmms.families.qwen2_vl import Qwen2VL, mrope_positions
from sttm_lmms.types import VisionFeatures


class Qwen25VL(Qwen2VL):
    """Qwen2.5-VL-3B/7B/32B/72B-Instruct."""

    name: ClassVar[str] = "qwen2_5_vl"
    architectures: ClassVar[Mapping[str, str]] = {"Qwen2_5_VLForConditionalGeneration": "hf"}
    model_types: ClassVar[tuple[str, ...]] = ("qwen2_5_vl",)

    def positions(self, model: Any, features: Sequence[VisionFeatures], sequence: Assembled) -> torch.Tensor:
        """A pair of frames is ``tokens_per_second`` times its seconds further than the one
        before."""
        config = model.config.vision_config
        visuals, intervals = [], []
        for start, feature in zip(sequence.starts, features, strict=True):
            t, h, w, _ = feature.tensor.shape
            visuals.append((start, (t, h, w)))
            seconds = config.temporal_patch_size / feature.metadata.get("video_sample_fps", 1.0)
            intervals.append(config.tokens_per_second * seconds if feature.kind == "video" else 1.0)
        return mrope_positions(sequence.input_ids.shape[1], visuals, intervals)
