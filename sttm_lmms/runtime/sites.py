"""Hooks for a stage inside of a layer, between its attention and its MLP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from sttm_lmms.errors import UnsupportedModelError
from sttm_lmms.methods.base import Stage


def hook_mlp(layer: Any, stage: Stage, reduce: Callable[[torch.Tensor], torch.Tensor]) -> list[Any]:
    """Reduce the residual stream between a layer's attention and its MLP.

    The layer adds the MLP's output to a residual that it keeps to itself at full length. So that sum is ignored: the
    MLP's output is put aside, zeros that broadcast take its place, and the layer's output is replaced.

    Args:
        layer: a decoder layer with ``post_attention_layernorm`` and ``mlp``.
        stage: what it is, for the error.
        reduce: hidden states ``[B, S, C]`` -> those that go on; the same object where nothing was reduced.

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
        layer.mlp.register_forward_hook(after_mlp, prepend=True),
        layer.register_forward_hook(after_layer, prepend=True),
    ]
