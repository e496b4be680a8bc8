"""Find the video spans of a forward pass of a stock transformers model from its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from sttm_lmms.errors import UnsupportedModelError
from sttm_lmms.families import FAMILIES, family_of_config
from sttm_lmms.families.base import runs
from sttm_lmms.types import VideoSpan


def locate_spans(config: Any, input_ids: torch.Tensor, position_ids: torch.Tensor | None) -> list[VideoSpan]:
    """Video spans of ``input_ids`` ``[B, L]``.

    Args:
        config: the whole model's config.
        position_ids: the positions that reach the decoder; for M-RoPE ``[3 or 4, B, L]``, which
            carry the grid.

    Raises:
        UnsupportedModelError: the model type is unknown, or the tokens of a video do not form its
            grid.
    """
    family = family_of_config(config)
    if family is None:
        known = dict.fromkeys(name for known in FAMILIES.values() for name in known.model_types)
        raise UnsupportedModelError(
            f"model type {config.model_type!r} is not supported: videos are found in models of type "
            f"{', '.join(known)}; pass spans= to reduce_tokens for any other decoder"
        )
    # One copy to the host instead of a look at the device for every run of tokens.
    return family.locate_spans(config, input_ids.cpu(), None if position_ids is None else position_ids.cpu())


def knows_videos_of(config: Any) -> bool:
    """Whether :func:`locate_spans` finds videos in the inputs of a model with this config."""
    return hasattr(config, "model_type") and family_of_config(config) is not None


def check_image_positions(config: Any, input_ids: torch.Tensor, positions: torch.Tensor | None) -> None:
    """Refuse images of a later turn whose (t, h, w) positions transformers has replaced by those of
    text.

    Args:
        input_ids: ``[B, L]`` of the new tokens.
        positions: ``[A, B, L']``, whose last L are theirs.

    Raises:
        UnsupportedModelError: an image of several tokens has the same position on all axes.
    """
    family = family_of_config(config)
    if family is None or not family.mrope:
        return
    for row, start, length in runs(input_ids == config.image_token_id):
        if length > 1 and not _has_axes(positions, row, start - input_ids.shape[1], length):
            raise UnsupportedModelError(
                f"row {row} has an image of {length} tokens without 3-D (t, h, w) positions behind a cached video; "
                "continue with generate and the processor's `mm_token_type_ids` and grids of the whole chat, or pass "
                "position_ids"
            )


def _has_axes(positions: torch.Tensor | None, row: int, start: int, length: int) -> bool:
    if positions is None or len(positions) == 1:
        return False
    start += positions.shape[-1]
    places = positions[:, min(row, positions.shape[1] - 1), start : start + length]
    return bool((places != places[:1]).any())


def expand_spans(spans: Sequence[VideoSpan], embeds: torch.Tensor, *, trusted: bool = False) -> list[VideoSpan]:
    """Spans for a batch whose rows were repeated in place (beams, several sequences per prompt).

    Args:
        spans: ``row`` counts prompts.
        embeds: ``[B, L, C]``. Neighbouring rows with the same embeddings are copies of one prompt.
        trusted: every prompt has a span, so that nothing has to be compared.
    """
    rows, prompts = len(embeds), max((span.row for span in spans), default=0) + 1
    most = rows // prompts
    times = most if trusted else next((n for n in range(most, 1, -1) if rows % n == 0 and _repeats(embeds, n)), 1)
    return [replace(span, row=span.row * times + copy) for span in spans for copy in range(max(1, times))]


def _repeats(embeds: torch.Tensor, times: int) -> bool:
    groups = embeds.unflatten(0, (-1, times))
    return bool((groups == groups[:, :1]).all())


def check_spans(spans: Sequence[VideoSpan], length: int, rows: int) -> None:
    """Raise ``ValueError`` for spans that overlap or are not inside of ``rows`` sequences of
    ``length`` tokens."""
    ends: dict[int, int] = {}
    for span in sorted(spans, key=lambda span: (span.row, span.start)):
        if not 0 <= span.row < rows:
            raise ValueError(f"a video span is in row {span.row}, but the batch has rows 0 to {rows - 1}")
        if span.start < ends.get(span.row, 0) or span.end > length:
            raise ValueError(
                f"video span {span.start}..{span.end} of row {span.row} overlaps another one or leaves the sequence of "
                f"{length} tokens"
            )
        ends[span.row] = span.end
