"""Find the video spans of a forward pass of a stock transformers model from its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from sttm_lmms.errors import UnsupportedModelError
from sttm_lmms.types import VideoSpan


def locate_spans(config: Any, input_ids: torch.Tensor, position_ids: torch.Tensor | None) -> list[VideoSpan]:
    """Video spans of ``input_ids`` ``[B, L]``.

    Args:
        config: the whole model's config.
        position_ids: the positions that reach the decoder; for M-RoPE ``[3 or 4, B, L]``, which carry the grid.

    Raises:
        UnsupportedModelError: the model type is unknown, or the tokens of a video do not form its grid.
    """
    from sttm_lmms.families import FAMILIES, REFUSED, family_of_config

    family = family_of_config(config)
    if family is None:
        known = dict.fromkeys(name for known in FAMILIES.values() for name in known.model_types)
        missing = f" yet: {REFUSED[config.model_type]}" if config.model_type in REFUSED else ""
        raise UnsupportedModelError(
            f"model type {config.model_type!r} is not supported{missing}: videos are found in models of type "
            f"{', '.join(known)}; pass spans= to reduce_tokens for any other decoder"
        )
    # One copy to the host instead of a look at the device for every run of tokens.
    return family.locate_spans(config, input_ids.cpu(), None if position_ids is None else position_ids.cpu())


def expand_spans(spans: Sequence[VideoSpan], rows: int) -> list[VideoSpan]:
    """Spans for a batch whose rows were repeated in place (beams, several sequences per prompt)."""
    given = max((span.row for span in spans), default=0) + 1
    times = max(1, rows // given)
    return [replace(span, row=span.row * times + copy) for span in spans for copy in range(times)]


def check_spans(spans: Sequence[VideoSpan], length: int) -> None:
    """Raise ``ValueError`` for spans that overlap or leave the sequence of ``length`` tokens."""
    ends: dict[int, int] = {}
    for span in sorted(spans, key=lambda span: (span.row, span.start)):
        if span.start < ends.get(span.row, 0) or span.end > length:
            raise ValueError(
                f"video span {span.start}..{span.end} of row {span.row} overlaps another one or leaves the sequence of "
                f"{length} tokens"
            )
        ends[span.row] = span.end
