"""Deepstack features under reduction: what a decoder adds behind its first layers, averaged over
the cells of each token that is left.

Qwen3-VL adds features of several vision layers to the visual tokens behind its first decoder
layers. Where tokens are reduced among those layers, the decoder's own addition no longer fits, so
hooks do it instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from sttm_lmms.runtime.layer_inputs import LayerInputs
from sttm_lmms.runtime.videos import VideoTokens
from sttm_lmms.types import Deepstack

_MASK, _EMBEDS = "visual_pos_masks", "deepstack_visual_embeds"


def added_layers(kwargs: dict[str, Any]) -> int:
    """How many of the first layers a decoder called with these arguments adds something behind."""
    return len(kwargs.get(_EMBEDS) or ())


def take_deepstack(kwargs: dict[str, Any]) -> tuple[Deepstack, dict[str, Any]]:
    """What a decoder called with these arguments would add, and the arguments without it."""
    return Deepstack(kwargs[_MASK], tuple(kwargs[_EMBEDS])), {**kwargs, _MASK: None, _EMBEDS: None}


def hook_deepstack(
    deepstack: Deepstack, inputs: LayerInputs, videos: Sequence[VideoTokens], layers: Sequence[nn.Module]
) -> list[Any]:
    """Add features behind ``layers`` in place of the decoder; returns the hooks' handles."""

    def add(features: torch.Tensor, _: nn.Module, __: object, output: Any) -> Any:
        if isinstance(output, tuple):
            return (_added(output[0], deepstack.mask, features, inputs, videos), *output[1:])
        return _added(output, deepstack.mask, features, inputs, videos)

    return [
        layer.register_forward_hook(partial(add, features))
        for layer, features in zip(layers, deepstack.features, strict=True)
    ]


def _added(
    hidden: torch.Tensor,
    mask: torch.Tensor,
    features: torch.Tensor,
    inputs: LayerInputs,
    videos: Sequence[VideoTokens],
) -> torch.Tensor:
    """``hidden`` ``[B, S, C]`` with the features of the tokens that are left by now."""
    full = hidden.new_zeros(*mask.shape, hidden.shape[-1])
    full[mask.to(hidden.device)] = features.to(hidden)
    if inputs.batch.index is None:
        return hidden + full
    # Text, images and newlines keep their own features; a video's tokens get the mean of their
    # cells.
    index = inputs.batch.index.to(hidden.device)
    short = full.gather(1, index[..., None].expand(-1, -1, full.shape[-1]))
    for video in videos:
        row = video.span.row
        merged = mean_of_groups(full[row, video.span.places()], video.owner, len(video.tokens.cells))
        padding = inputs.batch.padding[row]
        places = [padding + place for start, length in video.pieces for place in range(start, start + length)]
        short[row, places] = merged
    return hidden + short


def mean_of_groups(features: torch.Tensor, owner: torch.Tensor, groups: int) -> torch.Tensor:
    """Features ``[T*H*W, C]`` of the original cells -> ``[groups, C]``: the mean over the cells of
    each token left. ``owner`` ``[T*H*W]`` says which one that is, -1 where a cell was dropped."""
    owner = owner.to(features.device)
    there = owner >= 0
    sums = torch.zeros(groups, features.shape[-1], dtype=torch.float32, device=features.device)
    counts = torch.zeros(len(sums), 1, dtype=torch.float32, device=features.device)
    sums.index_add_(0, owner[there], features[there].float())
    counts.index_add_(0, owner[there], torch.ones_like(counts[owner[there]]))
    return (sums / counts.clamp(min=1.0)).to(features.dtype)
