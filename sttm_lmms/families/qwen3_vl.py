"""Qwen3-VL: a timestamp in front of each pair of frames, and features of several vision layers for
the decoder's first.

Source: arXiv 2511.21631 (interleaved M-RoPE, DeepStack, text-based time alignment).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from sttm_lmms.families.assemble import Assembled, device_of
from sttm_lmms.families.base import runs
from sttm_lmms.families.qwen2_vl import VISION_END, Qwen2VL, frame_grid, mrope_positions
from sttm_lmms.families.template import frame_places
from sttm_lmms.types import VideoSpan, VisionFeatures

if TYPE_CHECKING:
    from sttm_lmms.video import Video


class Qwen3VL(Qwen2VL):
    """Qwen3-VL-2B/4B/8B/32B-Instruct and the mixtures of experts 30B-A3B and 235B-A22B."""

    name: ClassVar[str] = "qwen3_vl"
    architectures: ClassVar[Mapping[str, str]] = {
        "Qwen3VLForConditionalGeneration": "hf",
        "Qwen3VLMoeForConditionalGeneration": "hf",
    }
    model_types: ClassVar[tuple[str, ...]] = ("qwen3_vl", "qwen3_vl_moe")
    # Behind the layers that get deepstack features, and on the plateau of the paper's table 9.
    start_layer: ClassVar[int] = 3
    fixed_suffix: ClassVar[str] = 2 * VISION_END
    side: ClassVar[int] = 32

    def encode(self, model: Any, patches: torch.Tensor, grid_thw: torch.Tensor) -> torch.Tensor:
        """``[t, h/2, w/2, (1 + D) * C]``: the tokens, and behind them those of the D deepstack
        layers."""
        side = model.config.vision_config.spatial_merge_size
        t, h, w = grid_thw[0].tolist()
        device = device_of(model.model.visual)
        seen = model.model.get_video_features(patches.to(device), grid_thw.to(device))
        (tokens,) = seen.pooler_output
        # Newer versions of transformers split each layer's features by visual, as the tokens.
        deepstack = getattr(seen, "deepstack_features", None) or ()
        layers = [layer if isinstance(layer, torch.Tensor) else layer[0] for layer in deepstack]
        return torch.cat([tokens, *layers], dim=-1).reshape(t, h // side, w // side, -1)

    def feature_channels(self, config: Any) -> int:
        deepstack = getattr(config.vision_config, "deepstack_visual_indexes", ())
        return (1 + len(deepstack)) * super().feature_channels(config)

    def extra_metadata(self, video: Video) -> dict[str, Any]:
        return frame_places(video)

    def placeholder_text(self, processor: Any, feature: VisionFeatures) -> str:
        """``<0.2 seconds><|vision_start|>...<|vision_end|>`` for each pair of frames, as the
        processor writes it."""
        if feature.kind == "image":
            return super().placeholder_text(processor, feature)
        from transformers.video_utils import VideoMetadata

        noted = feature.metadata
        indices = list(noted["frame_indices"])
        about = VideoMetadata(total_num_frames=len(indices), fps=noted["video_fps"], frames_indices=indices)
        grid = torch.tensor([noted["video_grid_thw"]])
        return str(processor.replace_video_token({"video_grid_thw": grid, "video_metadata": [about]}, 0))

    def split(self, model: Any, feature: VisionFeatures) -> tuple[torch.Tensor, ...]:
        return feature.tensor.split(model.config.text_config.hidden_size, dim=-1)

    def positions(self, model: Any, features: Sequence[VisionFeatures], sequence: Assembled) -> torch.Tensor:
        """Each pair of frames is a grid of its own, as an image is."""
        shapes = [tuple(feature.tensor.shape[1:3]) for feature in features for _ in range(len(feature.tensor))]
        visuals = [(start, (1, h, w)) for start, (h, w) in zip(sequence.starts, shapes, strict=True)]
        return mrope_positions(sequence.input_ids.shape[1], visuals)

    def locate_spans(self, config: Any, input_ids: torch.Tensor, position_ids: torch.Tensor | None) -> list[VideoSpan]:
        """Runs of video tokens with nothing but a timestamp between ``<|vision_end|>`` and
        ``<|vision_start|>``."""
        videos: list[tuple[tuple[int, int, int], list[tuple[int, int]]]] = []
        for row, start, length in runs(input_ids == config.video_token_id):
            frame = (row, *frame_grid(position_ids, row, start, length))
            if videos and videos[-1][0] == frame:
                end = sum(videos[-1][1][-1])
                between = input_ids[row, end:start].tolist()
                brackets = [token for token in between if token in _brackets(config)]
                if brackets == list(_brackets(config)) and (between[0], between[-1]) == _brackets(config):
                    videos[-1][1].append((start, length))
                    continue
            videos.append((frame, [(start, length)]))
        return [
            VideoSpan(pieces[0][0], (len(pieces), h, w), row, pieces=tuple(pieces) if len(pieces) > 1 else None)
            for (row, h, w), pieces in videos
        ]


def _brackets(config: Any) -> tuple[int, int]:
    return config.vision_end_token_id, config.vision_start_token_id
