"""What a method may ask at a stage, and hooks for the stage that lies inside of a layer.

Attention weights of a few queries are computed apart, so that the model itself keeps its fast
attention.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache

from sttm_lmms.decoder import keys_values
from sttm_lmms.errors import UnsupportedModelError
from sttm_lmms.methods.base import Stage


class AttentionInputs:
    """Remembers what a layer's attention was called with; nothing is computed until somebody
    asks."""

    def __init__(self, layer: nn.Module) -> None:
        attention = getattr(layer, "self_attn", None)
        if attention is None or not all(hasattr(attention, name) for name in ("q_proj", "k_proj", "head_dim")):
            raise UnsupportedModelError(
                f"a {type(layer).__name__} has no `self_attn` with `q_proj`, `k_proj` and `head_dim`, which a "
                "method that reads attention needs in the layer before; let it act elsewhere, or take another method"
            )
        self.attention: Any = attention
        self.hidden: torch.Tensor | None = None
        self.rotary: tuple[torch.Tensor, torch.Tensor] | None = None
        self._handle = attention.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.hidden = args[0] if args else kwargs["hidden_states"]
        self.rotary = args[1] if len(args) > 1 else kwargs["position_embeddings"]

    def remove(self) -> None:
        """Forget everything and detach."""
        self._handle.remove()
        self.hidden = self.rotary = None

    def weights(self, row: int, queries: torch.Tensor, cache: Cache | None, padding: int = 0) -> torch.Tensor:
        """Causal softmax weights of some queries over all keys of one row, averaged over heads.

        Args:
            row: batch row.
            queries: ``[Q]`` int64, indices into the row's new tokens, padding included.
            cache: holds the keys of past and new tokens; None computes those of the new tokens.
            padding: entries in front of the row that are not seen.

        Returns:
            ``[Q, K - padding]`` float32.
        """
        if self.hidden is None or self.rotary is None:
            raise ValueError("attention was asked for before this layer ran")
        hidden = self.hidden[row]
        cos, sin = (table[min(row, len(table) - 1)] for table in self.rotary)  # one row may stand for all
        queries = queries.to(hidden.device)
        query = self._heads(hidden[queries], "q", cos[queries], sin[queries])
        if cache is None:
            key = self._heads(hidden, "k", cos, sin)
        else:
            key = keys_values(cache.layers[self.attention.layer_idx])[0][row]
        key = key.repeat_interleave(len(query) // len(key), dim=0)
        scaling = getattr(self.attention, "scaling", self.attention.head_dim**-0.5)
        scores = (query @ key.transpose(-1, -2)).float() * scaling  # [heads, Q, K]
        place = torch.arange(key.shape[1], device=scores.device)
        # Queries are among the new tokens, behind all cached ones.
        hidden_from = place > queries[:, None] + key.shape[1] - len(hidden)
        scores = scores.masked_fill(hidden_from | (place < padding), -torch.inf)
        return scores.softmax(-1).mean(0)[:, padding:]

    def _heads(self, hidden: torch.Tensor, kind: str, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """``[heads, n, head_dim]`` queries or keys after rotary."""
        project = getattr(self.attention, f"{kind}_proj")
        states = project(hidden).unflatten(-1, (-1, self.attention.head_dim))
        if kind == "q" and states.shape[1] == 2 * self.attention.config.num_attention_heads:
            states = states[:, ::2]  # Qwen3.5 projects a gate of the output behind the query of each head
        norm = getattr(self.attention, f"{kind}_norm", None)
        states = (states if norm is None else norm(states)).transpose(0, 1)
        return rotated(self.attention, states, cos, sin)


@dataclass(frozen=True)
class VideoProbe:
    """What a method may ask about one video in front of one stage
    (:class:`~sttm_lmms.methods.base.Probe`)."""

    layers: int
    inputs: AttentionInputs | None
    cache: Cache | None
    row: int
    padding: int
    pieces: Sequence[tuple[int, int]]

    def attention(self, queries: Sequence[int] = (-1,)) -> torch.Tensor:
        """See :class:`~sttm_lmms.methods.base.Probe`."""
        if self.inputs is None or self.inputs.hidden is None:
            raise ValueError(
                "there is no attention in front of this stage: the class needs reads = 'attention', and a stage in "
                "front of layer 0 has no layer before it"
            )
        new = self.inputs.hidden.shape[1]
        places = [q + new if q < 0 else q + self.padding for q in queries]
        wanted = torch.tensor(places, device=self.inputs.hidden.device)
        weights = self.inputs.weights(self.row, wanted, self.cache, self.padding)
        past = weights.shape[1] - (new - self.padding)
        runs = [weights[:, past + start : past + start + length] for start, length in self.pieces]
        return runs[0] if len(runs) == 1 else torch.cat(runs, dim=1)


def rotated(attention: nn.Module, states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Queries or keys ``[heads, n, head_dim]`` turned by ``[n, D]``, by the model's own function: some
    turn a part of the channels only (Qwen3.5), or neighbouring ones (GLM)."""
    turn = vars(sys.modules[type(attention).__module__])["apply_rotary_pos_emb"]
    return turn(states[None], states[None], cos[None], sin[None])[0][0]


def hook_mlp(layer: Any, stage: Stage, reduce: Callable[[torch.Tensor], torch.Tensor]) -> list[Any]:
    """Reduce the residual stream between a layer's attention and its MLP.

    The layer adds the MLP's output to a residual that it keeps to itself at full length. So that
    sum is ignored: the MLP's output is put aside, zeros that broadcast take its place, and the
    layer's output is replaced.

    Args:
        layer: a decoder layer with ``post_attention_layernorm`` and ``mlp``.
        stage: what it is, for the error.
        reduce: hidden states ``[B, S, C]`` -> those that go on; the same object where nothing was
            reduced.

    Returns:
        The hooks' handles.

    Raises:
        UnsupportedModelError: the layer is built in another way.
    """
    short: list[torch.Tensor] = []

    def before_norm(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        hidden = reduce(args[0])
        if hidden is args[0]:
            return None
        short.append(hidden)
        return (hidden, *args[1:])

    def after_mlp(_: nn.Module, __: Any, output: torch.Tensor) -> torch.Tensor | None:
        if not short:
            return None
        short.append(output)
        # Broadcasts against the full-length residual, so that the layer's own addition runs
        # through.
        return output.new_zeros(1, 1, output.shape[-1])

    def after_layer(_: nn.Module, __: Any, output: Any) -> Any:
        if not short:
            return None
        hidden = short[0] + short[1]
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    for name in ("post_attention_layernorm", "mlp"):
        if not hasattr(layer, name):
            raise UnsupportedModelError(f"{type(layer).__name__} has no `{name}`; {stage} cannot be reached")
    return [
        layer.post_attention_layernorm.register_forward_pre_hook(before_norm),
        # GLM-4.1V norms what the MLP gives before it is added.
        getattr(layer, "post_mlp_layernorm", layer.mlp).register_forward_hook(after_mlp, prepend=True),
        layer.register_forward_hook(after_layer, prepend=True),
    ]
