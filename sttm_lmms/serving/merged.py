"""The part of a prompt that all questions of a video share, with merged visual tokens, as one
tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from sttm_lmms.methods.base import Method, Stage
from sttm_lmms.runtime.videos import Batch, VideoTokens, reduce_videos
from sttm_lmms.types import PreparedInput


@dataclass(frozen=True)
class MergedPrefix:
    """Text before, videos, time instruction.

    Attributes:
        embeds: ``[P, C]`` on the host.
        text_before: tokens in front of the first visual one.
        visual_tokens, kept_tokens: visual tokens before and after the reduction, images and
            newlines included.
    """

    embeds: torch.Tensor
    text_before: int
    visual_tokens: int
    kept_tokens: int


@torch.inference_mode()
def merge_prefix(method: Method | None, prepared: PreparedInput, config: Any) -> MergedPrefix:
    """Reduce the videos of a prompt as the decoder hooks do in front of layer 0.

    Args:
        method: acts there alone (see :func:`~sttm_lmms.serving.limits.check_served`); None reduces
            nothing.
        config: the whole model's.
    """
    text, ids = config.text_config, prepared.input_ids[0]
    visual = ((ids == config.video_token_id) | (ids == config.image_token_id)).nonzero()
    embeds = prepared.inputs_embeds[:, : prepared.prefix_length]
    removed = 0
    if method is not None and prepared.spans:
        heads = text.hidden_size // text.num_attention_heads
        videos = [VideoTokens.of(span, 0, embeds, heads) for span in prepared.spans]
        embeds, _, results = reduce_videos(
            method, Stage(0), embeds, Batch(None, None, [0]), videos, layers=text.num_hidden_layers
        )
        removed = sum(
            video.span.length - len(kept) for video, kept in zip(videos, results, strict=True) if kept is not None
        )
    return MergedPrefix(
        embeds=on_host(embeds[0]),
        text_before=int(visual[0]) if len(visual) else len(ids),
        visual_tokens=prepared.visual_tokens,
        kept_tokens=prepared.visual_tokens - removed,
    )


def on_host(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in host memory: a view would keep all that it is a part of."""
    return tensor.detach().to("cpu", copy=True).contiguous()
