"""The prompt of one document, made by the family's own code on a stand-in that is one channel wide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import nn

from sttm_lmms.families.base import Family
from sttm_lmms.rehearsal.video import Sight
from sttm_lmms.types import Message, VisionFeatures


@dataclass(frozen=True)
class Rendered:
    """A prompt and its lengths in tokens.

    Attributes:
        text: as the model reads it, with each run of visual tokens as ``<N video tokens>``.
        tokens: of the whole prompt.
        visual: visual tokens, newlines included.
        newlines: of these, newline tokens.
        shared: tokens in front of the question, whose KV is shared by the video's questions.
        reducible: whether its video can be reduced.
    """

    text: str
    tokens: int
    visual: int
    newlines: int
    shared: int
    reducible: bool


class _Narrow(nn.Module):
    """What ``Family.prepare`` asks of a model, with one channel: token ids and lengths do not depend on more."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.dtype = torch.float32
        self.embedding = nn.Embedding(config.get_text_config().vocab_size, 1)
        self.model = nn.Module()
        self.model.image_newline = nn.Parameter(torch.zeros(1))

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding


def render_prompt(
    family: Family, config: Any, processor: Any, messages: Sequence[Message], sight: Sight, newline: str | None
) -> Rendered:
    """The prompt for ``messages`` about one video."""
    features = VisionFeatures(torch.zeros(*sight.grid, 1), "video", sight.metadata, projected=True)
    with torch.inference_mode():
        prepared = family.prepare(_Narrow(config), processor, messages, [features], newline=newline)
    ids = prepared.input_ids[0].tolist()
    t, h, w = sight.grid
    return Rendered(
        text=_readable(ids, getattr(config, "video_token_id", config.image_token_id), processor.tokenizer),
        tokens=len(ids),
        visual=prepared.visual_tokens,
        newlines=prepared.visual_tokens - t * h * w,
        shared=prepared.prefix_length,
        reducible=bool(prepared.spans),
    )


def _readable(ids: list[int], video: int, tokenizer: Any) -> str:
    pieces = []
    for is_video, run in groupby(ids, key=lambda token: token == video):
        tokens = list(run)
        pieces.append(f"<{len(tokens):,} video tokens>" if is_video else tokenizer.decode(tokens))
    return "".join(pieces)
