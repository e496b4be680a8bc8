"""From a prompt in pieces to one sequence of embeddings: the same for every family."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sttm_lmms.errors import UnsupportedModelError
from sttm_lmms.types import Message, VideoSpan, VisionFeatures

Segment = str | int
"""A piece of a prompt: text, or the number of the visual that stands there (all of it, or its next
piece)."""

VISUAL_KINDS = ("video", "image")

# Stands inside of special tokens that a user has spelled out: a code point that no text has (a
# Unicode noncharacter).
MARK = "\ufdd0"


@dataclass(frozen=True)
class VisualTokens:
    """What one visual puts into the sequence.

    Attributes:
        embeds: ``[N, C]``, newline tokens included.
        token_id: stands for each of them in ``input_ids``.
        grid: (T, H, W) if the first T*H*W tokens are a reducible video grid, else None.
        pieces: how many of them stand at each place where the prompt names the visual; None is all
            at one place.
    """

    embeds: torch.Tensor
    token_id: int
    grid: tuple[int, int, int] | None = None
    pieces: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Assembled:
    """One assembled sequence.

    Attributes:
        input_ids: ``[1, L]``.
        inputs_embeds: ``[1, L, C]``.
        pieces: ``(start, length)`` of each run of visual tokens, in order.
        spans: the reducible videos.
        prefix_length, visual_tokens: as in :class:`~sttm_lmms.types.PreparedInput`.
    """

    input_ids: torch.Tensor
    inputs_embeds: torch.Tensor
    pieces: tuple[tuple[int, int], ...]
    spans: tuple[VideoSpan, ...]
    prefix_length: int
    visual_tokens: int

    @property
    def starts(self) -> tuple[int, ...]:
        """Where each run of visual tokens starts."""
        return tuple(start for start, _ in self.pieces)

    @property
    def visual_mask(self) -> torch.Tensor:
        """``[1, L]`` bool, the visual tokens."""
        mask = torch.zeros_like(self.input_ids, dtype=torch.bool)
        for start, length in self.pieces:
            mask[0, start : start + length] = True
        return mask


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
    """Raise ``ValueError`` unless the visual parts of the messages are the given features, kind by
    kind."""
    asked = [part["type"] for message in messages for part in content_parts(message) if part["type"] in VISUAL_KINDS]
    given = [feature.kind for feature in features]
    if asked != given:
        raise ValueError(f"the messages hold the visuals {asked}, but features were given for {given}")


def join_text(segments: Sequence[Segment]) -> list[Segment]:
    """Neighbouring texts become one, so that tokens may cross the seams as in the whole prompt."""
    joined: list[Segment] = []
    for segment in segments:
        if isinstance(segment, str) and joined and isinstance(joined[-1], str):
            joined[-1] += segment
        elif segment != "":
            joined.append(segment)
    return joined


def as_plain_text(text: str, tokens: Collection[str]) -> str:
    """``text`` with a mark inside of every spelled-out special token, so that :func:`token_ids`
    reads it as text.

    Lone surrogates, which no tokenizer takes, become U+FFFD.
    """
    text = text.replace(MARK, "").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    longest_first = sorted(tokens, key=len, reverse=True)
    pattern = "|".join(re.escape(token) for token in longest_first)
    return re.sub(pattern, lambda found: found[0][:1] + MARK + found[0][1:], text) if pattern else text


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text as it stands: no beginning-of-sequence token is added."""
    pieces = [piece for piece in text.split(MARK) if piece]
    return [token for piece in pieces for token in tokenizer(piece, add_special_tokens=False)["input_ids"]]


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading items two sequences share."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def assemble(
    segments: Sequence[Segment],
    visuals: Sequence[VisualTokens],
    tokenizer: Any,
    embed: nn.Module,
    *,
    fixed_suffix: str = "",
) -> Assembled:
    """Tokenise the text, embed it, and put the visual embeddings where they belong.

    Args:
        segments: text and numbers of ``visuals``, in order.
        embed: the input embedding module; it is called, so that offloaded weights are fetched.
        fixed_suffix: start of the text after the last visual that every question shares.
    """
    ids: list[int] = []
    placed: list[tuple[int, int]] = []
    of_visual: list[list[tuple[int, int]]] = [[] for _ in visuals]
    prefix = 0
    for segment in segments:
        if isinstance(segment, str):
            text_ids = token_ids(tokenizer, segment)
            if placed and prefix == len(ids):
                prefix += common_prefix(token_ids(tokenizer, fixed_suffix), text_ids)
            ids += text_ids
        else:
            visual, before = visuals[segment], of_visual[segment]
            length = len(visual.embeds) if visual.pieces is None else visual.pieces[len(before)]
            placed.append((len(ids), length))
            before.append(placed[-1])
            ids += [visual.token_id] * length
            prefix = len(ids)
    input_ids = torch.tensor([ids], dtype=torch.long, device=device_of(embed))
    embeds = embed(input_ids)
    for visual, pieces in zip(visuals, of_visual, strict=True):
        lengths = [length for _, length in pieces]
        for (start, length), part in zip(pieces, visual.embeds.split(lengths), strict=True):
            embeds[0, start : start + length] = part.to(embeds)
    spans = tuple(
        VideoSpan(pieces[0][0], visual.grid, pieces=tuple(pieces) if len(pieces) > 1 else None)
        for visual, pieces in zip(visuals, of_visual, strict=True)
        if visual.grid is not None
    )
    return Assembled(input_ids, embeds, tuple(placed), spans, prefix, sum(len(v.embeds) for v in visuals))


def device_of(module: nn.Module) -> torch.device:
    """Where a module's inputs should go: its first parameter's device, or the CPU if that is
    offloaded.

    Offloaded modules carry accelerate's hooks, which take their inputs on from there.
    """
    device = next(module.parameters()).device
    return torch.device("cpu") if device.type == "meta" else device
