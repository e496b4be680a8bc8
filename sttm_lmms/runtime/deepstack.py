"""Deepstack features under reduction: what a decoder adds behind its first layers, merged by the
groups of its tokens.

Qwen3-VL adds features of several vision layers to the visual tokens behind its first decoder
layers. Where tokens are reduced among those layers, the decoder's own addition no longer fits, so
hooks do it instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from sttm_lmms.runtime.layer_inputs import LayerInputs
from sttm_lmms.runtime.videos import VideoTokens

_MASK, _EMBEDS = "visual_pos_masks", "deepstack_visual_embeds"


def added_layers(kwargs: dict[str, Any]) -> int:
    """How many of the first layers a decoder called with these arguments adds something behind."""
    return len(kwargs.get(_EMBEDS) or ())


@dataclass(frozen=True)
class Additions:
    """What is added behind each of the first layers.

    Attributes:
        mask: ``[B, L]`` bool, the visual tokens of the unreduced sequence.
        features: one ``[N, C]`` a layer, the N visual tokens of all rows in order.
    """

    mask: torch.Tensor
    features: Sequence[torch.Tensor]

    @classmethod
    def take(cls, kwargs: dict[str, Any]) -> tuple[Additions, dict[str, Any]]:
        """The additions among a decoder's arguments, and the arguments without them."""
        return cls(kwargs[_MASK], kwargs[_EMBEDS]), {**kwargs, _MASK: None, _EMBEDS: None}

    def hook(self, inputs: LayerInputs, videos: Sequence[VideoTokens], layers: Sequence[nn.Module]) -> list[Any]:
        """Add behind ``layers`` in place of the decoder; returns the hooks' handles."""

        def add(index: int, _: nn.Module, __: object, output: Any) -> Any:
            if isinstance(output, tuple):
                return (self.add(inputs, videos, index, output[0]), *output[1:])
            return self.add(inputs, videos, index, output)

        return [layer.register_forward_hook(partial(add, index)) for index, layer in enumerate(layers)]

    def add(self, inputs: LayerInputs, videos: Sequence[VideoTokens], layer: int, hidden: torch.Tensor) -> torch.Tensor:
        """``hidden`` ``[B, S, C]`` behind ``layer`` with its features, of the tokens that are left
        by now."""
        full = hidden.new_zeros(*self.mask.shape, hidden.shape[-1])
        full[self.mask.to(hidden.device)] = self.features[layer].to(hidden)
        if inputs.batch.index is None:
            return hidden + full
        index = inputs.batch.index.to(hidden.device)
        short = full.gather(1, index[..., None].expand(-1, -1, full.shape[-1]))
        for video in videos:
            row = video.span.row
            merged = mean_of_groups(full[row, video.span.places()], video.owner, len(video.tokens.cells))
            places = [
                place + inputs.batch.padding[row] for start, n in video.pieces for place in range(start, start + n)
            ]
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
