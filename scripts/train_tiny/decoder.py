"""The Qwen2 decoder and a forward pass of it for training: one video, several questions that do not
see each other.

The weights live in transformers' Qwen2ForCausalLM. This forward pass differs from its own in two
ways: questions of one video share the video, and hidden states and attention of the text come out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from .codes import HIDDEN, OBJECT_NORM, Codes

LAYERS = 7
FRONT = 2
"""Layers before the visual tokens may be reduced; the layers after them are the core."""
HEADS, KV_HEADS = 4, 2
VOCABULARY = 320
THETA = 1_000_000.0


def decoder_config() -> Qwen2Config:
    return Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=256,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        initializer_range=0.07,
        tie_word_embeddings=False,
        use_sliding_window=False,
    )


def build_decoder(codes: Codes, object_ids: list[int]) -> Qwen2ForCausalLM:
    """A fresh decoder: object words start as their codes, the front layers start as the
    identity."""
    model = Qwen2ForCausalLM(decoder_config())
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(0.2 / 0.07)
        model.model.embed_tokens.weight[object_ids] = OBJECT_NORM * codes.objects
        for number, layer in enumerate(model.model.layers):
            gain = 0.0 if number < FRONT else 1 / math.sqrt(LAYERS)
            layer.self_attn.o_proj.weight.mul_(gain)
            layer.mlp.down_proj.weight.mul_(gain)
    return model


@dataclass
class Trace:
    """What a forward pass leaves: hidden states after each layer and the text's attention.

    Attributes:
        context: ``{layer: [B, C', D]}``, text: ``{layer: [B, L, D]}``.
        attention: ``{layer: [B, heads, L, C' + L]}``, the text's attention.
    """

    context: dict[int, torch.Tensor]
    text: dict[int, torch.Tensor]
    attention: dict[int, torch.Tensor]

    def mass(self, layer: int, prefix: int) -> torch.Tensor:
        """Mean share of a text token's attention that goes to visual tokens."""
        return self.attention[layer][..., prefix : self.context[layer].shape[1]].sum(-1).mean()


def rotation(positions: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin ``[n, width]`` of rotary position embeddings of positions ``[n]``."""
    rates = THETA ** (-torch.arange(0, width, 2).float() / width)
    angles = (positions.float()[:, None] * rates).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


def text_mask(lengths: list[int]) -> torch.Tensor:
    """Additive mask ``[L, L]``: causal inside each question, nothing between questions."""
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    index = torch.arange(len(owner))
    visible = (owner[:, None] == owner[None]) & (index[:, None] >= index[None])
    return torch.zeros(len(owner), len(owner)).masked_fill(~visible, -torch.inf)


def text_offsets(lengths: list[int]) -> torch.Tensor:
    """Position of each text token inside its question ``[L]``."""
    return torch.cat([torch.arange(n) for n in lengths])


def run(
    model: Qwen2ForCausalLM,
    context: torch.Tensor,
    text: torch.Tensor,
    lengths: list[int],
    *,
    layers: range = range(LAYERS),
) -> Trace:
    """Run ``layers`` over ``context`` ``[B, C, D]`` (what stands before the video, and the video)
    and the questions ``text`` ``[B, L, D]``, one after the other, ``lengths`` long."""
    trace = Trace({}, {}, {})
    size = context.shape[1]
    mask = F.pad(text_mask(lengths), (size, 0))
    positions = torch.cat((torch.arange(size), size + text_offsets(lengths)))
    turns = rotation(positions, model.config.hidden_size // HEADS)
    hidden = torch.cat((context, text), 1)
    for number in layers:
        layer = model.model.layers[number]
        update, shares = attention(layer.self_attn, layer.input_layernorm(hidden), size, turns, mask)
        hidden = hidden + update
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        trace.context[number], trace.text[number], trace.attention[number] = hidden[:, :size], hidden[:, size:], shares
    return trace


def attention(
    module: nn.Module, x: torch.Tensor, size: int, turns: tuple[torch.Tensor, torch.Tensor], mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of one layer ``[B, C+L, D]``, and the shares ``[B, heads, L, C+L]`` of the text's
    attention."""
    batch, length, width = x.shape
    head = width // HEADS
    q = module.q_proj(x).view(batch, length, HEADS, head).transpose(1, 2)
    k = module.k_proj(x).view(batch, length, KV_HEADS, head).transpose(1, 2)
    v = module.v_proj(x).view(batch, length, KV_HEADS, head).transpose(1, 2)
    q, k = rotate(q, *turns), rotate(k, *turns)
    k = k.repeat_interleave(HEADS // KV_HEADS, 1)
    v = v.repeat_interleave(HEADS // KV_HEADS, 1)
    seen = F.scaled_dot_product_attention(q[:, :, :size], k[:, :, :size], v[:, :, :size], is_causal=True)
    scores = q[:, :, size:] @ k.transpose(-1, -2) / math.sqrt(head)
    shares = (scores + mask).softmax(-1)
    out = torch.cat((seen, shares @ v), 2).transpose(1, 2).reshape(batch, length, width)
    return module.o_proj(out), shares
