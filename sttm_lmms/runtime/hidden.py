"""The visual tokens as they reach a decoder layer, for calibration and study."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sttm_lmms.families import family_of
from sttm_lmms.types import VisionFeatures


class _Reached(Exception):
    """The layer was reached; the rest of the forward pass is not needed."""


@torch.inference_mode()
def video_states(model: nn.Module, processor: Any, features: VisionFeatures, layer: int) -> torch.Tensor:
    """Hidden states ``[T, H, W, C]`` of one video's tokens in front of a decoder layer, unreduced.

    Args:
        model, processor: from :func:`sttm_lmms.load_pretrained`.
        features: of the video.
        layer: 0-based; 0 gives the input embeddings.
    """
    family = family_of(model)
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": " "}]}]
    prepared = family.prepare(model, processor, messages, [features], newline="no_token")
    (span,) = prepared.spans
    states = prepared.inputs_embeds
    if layer > 0:
        states = _in_front_of(family.decoder(model), prepared, layer)
    return states[0, span.places()].reshape(*span.grid, -1)


def _in_front_of(decoder: Any, prepared: Any, layer: int) -> torch.Tensor:
    caught: list[torch.Tensor] = []

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.append(args[0] if args else kwargs["hidden_states"])
        raise _Reached

    handle = decoder.layers[layer].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        rows, length = prepared.input_ids.shape
        added = prepared.deepstack.inputs(rows, length) if prepared.deepstack else {}
        decoder(inputs_embeds=prepared.inputs_embeds, position_ids=prepared.position_ids, use_cache=False, **added)
    except _Reached:
        pass
    finally:
        handle.remove()
    return caught[0]
