"""From a prompt in pieces to one sequence of embeddings: the same for every family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sttm_lmms.errors import UnsupportedModelError
from sttm_lmms.types import Message, VideoSpan, VisionFeatures

Segment = str | int
"""A piece of a prompt: text, or the number of the visual that stands there."""

VISUAL_KINDS = ("video", "image")


@dataclass(frozen=True)
class VisualTokens:
    """What one visual puts into the sequence.

    Attributes:
        embeds: ``[N, C]``, newline tokens included.
        token_id: stands for each of them in ``input_ids``.
        grid: (T, H, W) if the first T*H*W tokens are a reducible video grid, else None.
    """

    embeds: torch.Tensor
    token_id: int
    grid: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Assembled:
    """One assembled sequence: ``input_ids [1, L]``, ``inputs_embeds [1, L, C]``, where each visual starts."""

    input_ids: torch.Tensor
    inputs_embeds: torch.Tensor
    starts: tuple[int, ...]
    spans: tuple[VideoSpan, ...]
    prefix_length: int
    visual_tokens: int


def content_parts(message: Message) -> list[Mapping[str, Any]]:
    """The parts of a message; a plain string is one text part.

    Raises:
        UnsupportedModelError: a part that is neither text, image nor video.
    """
    content = message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content or ())
    for part in parts:
        if part.get("type") not in ("text", *VISUAL_KINDS):
            raise UnsupportedModelError(
                f"a message part of type {part.get('type')!r} is not supported; supported: text, image, video"
            )
    return parts


def check_visuals(messages: Sequence[Message], features: Sequence[VisionFeatures]) -> None:
    """Raise ``ValueError`` unless the visual parts of the messages are the given features, kind by kind."""
    asked = [part["type"] for message in messages for part in content_parts(message) if part["type"] in VISUAL_KINDS]
    given = [feature.kind for feature in features]
    if asked != given:
        raise ValueError(f"the messages hold the visuals {asked}, but features were given for {given}")


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text as it stands: no beginning-of-sequence token is added."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading items two sequences share."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def assemble(
    segments: Sequence[Segment],
    visuals: Sequence[VisualTokens],
    tokenizer: Any,
    embed: nn.Module,
    *,
    stable_tail: str = "",
) -> Assembled:
    """Tokenise the text, embed it, and put the visual embeddings where they belong.

    Args:
        segments: text and numbers of ``visuals``, in order.
        embed: the input embedding module; it is called, so that offloaded weights are fetched.
        stable_tail: start of the text after the last visual that every question shares.
    """
    ids: list[int] = []
    starts: list[int] = []
    prefix = 0
    for segment in segments:
        if isinstance(segment, str):
            text_ids = token_ids(tokenizer, segment)
            if starts and prefix == len(ids):
                prefix += common_prefix(token_ids(tokenizer, stable_tail), text_ids)
            ids += text_ids
        else:
            starts.append(len(ids))
            ids += [visuals[segment].token_id] * len(visuals[segment].embeds)
            prefix = len(ids)
    order = [segment for segment in segments if isinstance(segment, int)]
    input_ids = torch.tensor([ids], dtype=torch.long, device=device_of(embed))
    embeds = embed(input_ids)
    for number, start in zip(order, starts, strict=True):
        visual = visuals[number].embeds
        embeds[0, start : start + len(visual)] = visual.to(embeds)
    spans = tuple(
        VideoSpan(start, grid)
        for number, start in zip(order, starts, strict=True)
        if (grid := visuals[number].grid) is not None
    )
    return Assembled(input_ids, embeds, tuple(starts), spans, prefix, sum(len(v.embeds) for v in visuals))


def device_of(module: nn.Module) -> torch.device:
    """Where a module's inputs should go: its first parameter's device, or the CPU if that is offloaded.

    Offloaded modules carry accelerate's hooks, which take their inputs on from there.
    """
    device = next(module.parameters()).device
    return torch.device("cpu") if device.type == "meta" else device
