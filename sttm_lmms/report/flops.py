"""Operations of a decoder's first pass over a prompt, by count: what a method saves when its own
cost is left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of a decoder with grouped-query attention and a gated MLP."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> DecoderShape:
        """From a checkpoint's ``config.json``: its text part where it has one.

        Raises:
            KeyError: a size is not in it.
        """
        text = config.get("text_config") or config
        heads = text["num_attention_heads"]
        return cls(
            layers=text["num_hidden_layers"],
            hidden=text["hidden_size"],
            heads=heads,
            kv_heads=text.get("num_key_value_heads") or heads,
            head_dim=text.get("head_dim") or text["hidden_size"] // heads,
            mlp=text["intermediate_size"],
        )

    @property
    def layer_weights(self) -> int:
        """Weights of one layer's matrices."""
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        return attention + 3 * self.hidden * self.mlp


def prefill_flops(shape: DecoderShape, *, text: float, visual: float, kept: float, layer_tokens: float) -> float:
    """Multiply-adds x 2 of a prefill: ``2 * weights * n + 2 * heads * head_dim * n^2`` for a layer
    that sees n tokens.

    The square is that of causal attention, which needs half of all pairs. Embedding, the last
    projection (one token), the vision tower and what the method itself computes are not counted.

    Args:
        text: tokens of the prompt that are no visual ones; all layers see them.
        visual, kept: visual tokens before and after reduction.
        layer_tokens: visual tokens that a layer sees, mean over the layers. The layers are taken to
            see either ``visual`` or ``kept``, so many each that this is their mean: exact for a
            method that reduces once; for one that reduces layer by layer the linear part is exact
            and the square an upper bound.
    """
    full = (layer_tokens - kept) / (visual - kept) if visual > kept else 1.0
    full = min(1.0, max(0.0, full))

    def layer(tokens: float) -> float:
        return 2.0 * shape.layer_weights * tokens + 2.0 * shape.heads * shape.head_dim * tokens**2

    return shape.layers * (full * layer(text + visual) + (1 - full) * layer(text + kept))
