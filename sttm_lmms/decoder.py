"""What the runtime needs to know about a transformers decoder: where it is, its rotary embedding
and its masks."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicLayer, LinearAttentionCacheLayerMixin
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from sttm_lmms.errors import UnsupportedModelError

CACHE = "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"
"""What models call the argument that is their KV cache; transformers 5.24 renamed it."""

_MASKS = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}
RECURRENT = "linear_attention"
"""Type of the layers that keep one state of fixed size instead of keys and values (Qwen3.5)."""


def find_decoder(model: nn.Module) -> Any:
    """The text decoder inside ``model``: the module with ``layers``, ``rotary_emb`` and
    ``embed_tokens``.

    Raises:
        UnsupportedModelError: there is none (the model is not a rotary decoder such as Qwen2 or
            Llama).
    """
    for module in model.modules():
        # Not hasattr: wrappers (PEFT, torch.compile) answer for the module inside of them.
        if all(name in module._modules for name in ("layers", "rotary_emb", "embed_tokens")):
            return module
    raise UnsupportedModelError(
        f"{type(model).__name__} has no decoder with `layers`, `rotary_emb` and `embed_tokens`; supported are the "
        "LLaVA-OneVision, Qwen-VL, Qwen3.5 and InternVL classes of transformers, and decoders like Qwen2 or Llama"
    )


def uses_mrope(decoder: Any) -> bool:
    """True if the decoder rotates by (t, h, w) positions (Qwen2-VL), False for one position per
    token."""
    return bool(mrope_section(decoder.config))


def mrope_section(config: Any) -> list[int]:
    """How many rotary frequencies belong to t, h and w; empty for one position per token."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return list(rope.get("mrope_section") or ())


def head_dim(decoder: Any) -> int:
    """Channels per attention head of the hidden state."""
    return int(decoder.config.hidden_size // decoder.config.num_attention_heads)


def layer_types(decoder: Any) -> list[str]:
    """Attention type of every layer: the config's ``layer_types`` or, as transformers reads configs
    without them (Mistral, Mixtral, Phi-3, Starcoder2), one window or one chunk size for all layers,
    else full attention."""
    config = decoder.config
    if types := getattr(config, "layer_types", None):
        return list(types)
    kind = "full_attention"
    if getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True):
        kind = "sliding_attention"
    elif getattr(config, "attention_chunk_size", None) is not None:
        kind = "chunked_attention"
    return [kind] * len(decoder.layers)


def rotary_embedding(decoder: Any, hidden: torch.Tensor, positions: torch.Tensor, layer: int) -> Any:
    """Cosines and sines with which ``layer`` rotates tokens at ``positions``; ``hidden`` gives
    dtype and device.

    Decoders with windows (Gemma 3) may have one rotary table for each attention type.
    """
    if "layer_type" in inspect.signature(decoder.rotary_emb.forward).parameters:
        return decoder.rotary_emb(hidden, positions, layer_types(decoder)[layer])
    return decoder.rotary_emb(hidden, positions)


def layer_mask(
    decoder: Any,
    hidden: torch.Tensor,
    mask: torch.Tensor | None,
    cache: Cache | None,
    layer: int,
    visible: Callable[..., Any] | None = None,
) -> Any:
    """Causal mask for ``hidden`` ``[B, S, C]`` in ``layer``, sized by that layer's own KV length.

    ``mask`` is the 2-D padding mask ``[B, past + S]`` of that layer's sequence, None without
    padding; ``visible`` narrows what a query sees. The result is what the attention backend wants:
    None, a 4-D mask, a 2-D mask (flash) or a block mask; for a recurrent layer the padding ``[B, S]``.
    """
    kind = layer_types(decoder)[layer]
    if kind == RECURRENT:
        return _padding_of_new_tokens(hidden, mask, layer, visible)
    if kind not in _MASKS:
        supported = sorted([*_MASKS, RECURRENT])
        raise UnsupportedModelError(f"decoder layer {layer} has attention type {kind!r}; supported: {supported}")
    if getattr(decoder.config, "use_bidirectional_attention", False):
        raise UnsupportedModelError("this decoder attends in both directions; reduced tokens need causal attention")
    return _MASKS[kind](
        config=decoder.config,
        inputs_embeds=hidden,
        attention_mask=mask,
        position_ids=None,
        layer_idx=layer,
        and_mask_function=visible,
        **{CACHE: cache},
    )


def _padding_of_new_tokens(
    hidden: torch.Tensor, mask: torch.Tensor | None, layer: int, visible: Callable[..., Any] | None
) -> torch.Tensor | None:
    if visible is not None:
        raise UnsupportedModelError(
            f"decoder layer {layer} is recurrent: all tokens before enter its state, so that none can be hidden from a "
            "single query; use a method that needs no mask"
        )
    new = hidden.shape[1]
    return None if mask is None or new == 1 else mask[:, -new:]


def check_cache(cache: Cache | None) -> None:
    """Refuse caches whose layers cannot hold different lengths."""
    if cache is not None and getattr(cache, "is_compileable", False):
        raise UnsupportedModelError(
            f"{type(cache).__name__} has one fixed length for all layers, but reduced tokens need a length per layer; "
            "use the default DynamicCache (do not set cache_implementation='static')"
        )


def is_recurrent(layer: Any) -> bool:
    """True if a layer of a cache holds states of fixed size, which every token overwrites."""
    return isinstance(layer, LinearAttentionCacheLayerMixin)


def cache_tensors(cache: Cache) -> list[torch.Tensor]:
    """Everything that a filled cache holds: keys and values ``[B, heads, length, head_dim]``, and the
    states ``[B, ...]`` of recurrent layers."""
    tensors: list[torch.Tensor] = []
    for layer in cache.layers:
        if isinstance(layer, DynamicLayer):
            tensors += [held for held in (layer.keys, layer.values) if held is not None]
        elif isinstance(layer, LinearAttentionCacheLayerMixin):
            states = (*layer.conv_states.values(), *layer.recurrent_states.values())
            tensors += [state for state in states if state is not None]
        else:
            raise UnsupportedModelError("only caches that keep the keys and values of every layer can be reused")
    return tensors


def keys_values(layer: DynamicLayer) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values ``[B, heads, length, head_dim]`` of a filled cache layer.

    Raises:
        UnsupportedModelError: a sliding window has dropped some of them.
    """
    if layer.keys is None or layer.values is None:
        raise ValueError("this cache layer is empty")
    if layer.get_seq_length() > layer.keys.shape[-2]:
        raise UnsupportedModelError(
            f"the sliding window of this cache layer holds {layer.keys.shape[-2]} of {layer.get_seq_length()} tokens; "
            "methods that read attention or edit the KV cache, and prefixes shared between questions, need all of them"
        )
    return layer.keys, layer.values
