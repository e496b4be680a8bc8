"""The Qwen2 decoder and a forward pass of it for training: one video, several questions that do not see each other.

The weights live in transformers' Qwen2ForCausalLM; Qwen2-VL's decoder has the same ones. This forward pass differs from
its own in three ways: questions of one video share the video, hidden states and attention of the text come out, and
positions may have three axes, as Qwen2-VL's have (three equal ones are the same as one).
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
SECTIONS = (4, 6, 6)
"""Rotary frequencies that turn with time, row and column; the published models have 16, 24 and 24."""


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
    """A fresh decoder: object words start as their codes, the front layers start as the identity."""
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


@dataclass(frozen=True)
class Positions:
    """Where the tokens of a batch stand.

    Attributes:
        context: ``[3, B or 1, C']``: time, row and column of the tokens before the questions.
        text: position of the first token of every question, on all axes.
    """

    context: torch.Tensor
    text: int

    def with_text(self, offsets: torch.Tensor) -> torch.Tensor:
        """Positions ``[3, B or 1, C' + L]``, of the text as well."""
        text = (self.text + offsets).expand(3, self.context.shape[1], -1)
        return torch.cat((self.context, text), -1)


def in_a_row(size: int) -> Positions:
    """0, 1, 2, ... on all axes: how the LLaVA family counts."""
    return Positions(torch.arange(size).expand(3, 1, -1), size)


def rotation(positions: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin ``[B or 1, 1, n, width]`` of (multimodal) rotary position embeddings of positions ``[3, ..., n]``."""
    rates = THETA ** (-torch.arange(0, width, 2).float() / width)
    parts = (positions.float()[..., None] * rates).split(SECTIONS, -1)
    angles = torch.cat([part[axis] for axis, part in enumerate(parts)], -1)
    angles = torch.cat((angles, angles), -1)[:, None]
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
    positions: Positions | None = None,
    blank: torch.Tensor | None = None,
) -> Trace:
    """Run ``layers``.

    Args:
        context: ``[B, C, D]``: the tokens before the video and the video.
        text: ``[B, L, D]``: the questions one after the other, ``lengths`` long.
        positions: by default those of :func:`in_a_row`.
        blank: ``[B, C]`` bool, true where ``context`` only fills up (after everything real); text does not look there.
    """
    trace = Trace({}, {}, {})
    size = context.shape[1]
    mask = text_mask(lengths)
    if blank is not None:
        unseen = torch.zeros(blank.shape).masked_fill(blank, -torch.inf)
        unseen = unseen[:, None, None].expand(-1, 1, len(mask), -1)
        mask = torch.cat((unseen, mask.expand(len(unseen), 1, -1, -1)), -1)
    else:
        mask = F.pad(mask, (size, 0))
    places = (positions or in_a_row(size)).with_text(text_offsets(lengths))
    turns = rotation(places, model.config.hidden_size // HEADS)
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
    """Attention of one layer ``[B, C+L, D]``, and the shares ``[B, heads, L, C+L]`` of the text's attention."""
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
