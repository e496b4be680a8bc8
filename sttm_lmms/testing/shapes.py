"""Decoders of published shapes with random weights: for measuring time, where no checkpoint is at
hand.

Time to first token depends on shapes and lengths, not on what the weights say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import Qwen2Config, Qwen2Model
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLTextConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLTextModel

from sttm_lmms.testing.synthetic import natural_features
from sttm_lmms.types import VideoSpan

TEXT_BEFORE, TEXT_AFTER = 14, 90
"""Tokens of a system prompt, and of a question with options."""


@dataclass(frozen=True)
class DecoderShape:
    """A decoder, and what a frame looks like to it.

    Attributes:
        grid: (H, W) tokens of a frame.
        frames_per_step: frames that become one step of the token grid.
        mrope: rotary positions have three axes (t, h, w), as in Qwen2-VL.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    vocab: int
    grid: tuple[int, int]
    frames_per_step: int = 1
    mrope: bool = False

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    def visual_tokens(self, frames: int) -> int:
        return frames // self.frames_per_step * self.grid[0] * self.grid[1]

    def operations(self, visual: int, kept: int, start_layer: int) -> float:
        """Floating-point operations of a prefill whose layers from ``start_layer`` on see ``kept``
        visual tokens.

        2*P*N + 2*d*N^2 a layer: P weights, N tokens, d channels. What a reduction saves by this
        count is the ideal speed-up: merging and launches cost nothing.
        """
        text = TEXT_BEFORE + TEXT_AFTER
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        weights = attention + 3 * self.hidden * self.mlp

        def layer(tokens: int) -> float:
            return 2.0 * weights * tokens + 2.0 * self.hidden * tokens**2

        return start_layer * layer(visual + text) + (self.layers - start_layer) * layer(kept + text)

    def kv_bytes(self, visual: int, kept: int, start_layer: int) -> int:
        """Bytes of the KV cache in bfloat16."""
        text = TEXT_BEFORE + TEXT_AFTER
        tokens = start_layer * (visual + text) + (self.layers - start_layer) * (kept + text)
        return tokens * 2 * self.kv_heads * self.head_dim * 2


SHAPES = {
    "llava-video-7b": DecoderShape(3584, 28, 28, 4, 18944, 152064, (14, 14)),
    "qwen2-vl-7b": DecoderShape(3584, 28, 28, 4, 18944, 152064, (18, 32), frames_per_step=2, mrope=True),
    "qwen2-0.5b": DecoderShape(896, 24, 14, 2, 4864, 151936, (14, 14)),
    "small": DecoderShape(512, 8, 8, 2, 1536, 4096, (14, 14)),
}


def build_decoder(
    shape: DecoderShape, *, attention: str = "sdpa", dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[Any, nn.Linear]:
    """A decoder with random weights, in eval mode, and its output head."""
    sizes: dict[str, Any] = {
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "intermediate_size": shape.mlp,
        "vocab_size": shape.vocab,
        "max_position_embeddings": 1 << 20,
        "attn_implementation": attention,
    }
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            if shape.mrope:
                unit = shape.head_dim // 16
                rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2 * unit, 3 * unit, 3 * unit]}
                decoder: Any = Qwen2VLTextModel(Qwen2VLTextConfig(**sizes, rope_parameters=rope))
            else:
                decoder = Qwen2Model(Qwen2Config(**sizes))
            head = nn.Linear(shape.hidden, shape.vocab, bias=False)
    finally:
        torch.set_default_dtype(default)
    return decoder.eval(), head


def video_prompt(
    shape: DecoderShape, frames: int, *, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[dict[str, Any], VideoSpan]:
    """Inputs of one prefill with a footage-like video between text, and where the video is."""
    grid = (frames // shape.frames_per_step, *shape.grid)
    video = natural_features(*grid, shape.hidden, dtype=dtype, device=device).flatten(0, 2)
    text = torch.randn(TEXT_BEFORE + TEXT_AFTER, shape.hidden, dtype=dtype, device=device) * video.float().std()
    text = text.to(dtype)
    embeds = torch.cat([text[:TEXT_BEFORE], video, text[TEXT_BEFORE:]])[None]
    inputs: dict[str, Any] = {"inputs_embeds": embeds, "use_cache": True}
    if shape.mrope:
        inputs["position_ids"] = _mrope_positions(grid, device)
    return inputs, VideoSpan(TEXT_BEFORE, grid)


def _mrope_positions(grid: tuple[int, int, int], device: str) -> torch.Tensor:
    """(t, h, w) positions ``[3, 1, L]`` of text, video, text."""
    axes = torch.meshgrid(*(torch.arange(n, device=device) for n in grid), indexing="ij")
    video = torch.stack(axes).reshape(3, -1) + TEXT_BEFORE
    before = torch.arange(TEXT_BEFORE, device=device).expand(3, -1)
    after = torch.arange(TEXT_AFTER, device=device).expand(3, -1) + TEXT_BEFORE + max(grid)
    return torch.cat([before, video, after], dim=1)[:, None]
