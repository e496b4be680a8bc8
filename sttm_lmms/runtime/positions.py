"""Rotary positions and padding masks of the tokens of one forward pass, before any reduction."""

from __future__ import annotations

import torch

from sttm_lmms.errors import UnsupportedModelError
from sttm_lmms.runtime.reduced_cache import CachedSequence


def extend_mask(
    past: torch.Tensor | None, new: torch.Tensor | None, past_length: int, rows: int, length: int
) -> torch.Tensor | None:
    """Padding mask ``[B, past_length + length]`` from its two parts; a part that is None has no
    padding.

    ``past`` may be longer than ``past_length``, where the cache was cut back.
    """
    if past is None and new is None:
        return None
    device = (past if new is None else new).device  # type: ignore[union-attr]
    if past is None:
        past = torch.ones(rows, past_length, dtype=torch.bool, device=device)
    if new is None:
        new = torch.ones(rows, length, dtype=torch.bool, device=device)
    return torch.cat([past[:, :past_length].to(device), new], dim=1)


def contiguous(past: int, mask: torch.Tensor | None, rows: int, length: int, device: torch.device) -> torch.Tensor:
    """``[B, length]`` int64: positions of the last ``length`` of ``past + length`` tokens; padding
    does not count.

    ``mask`` is ``[B, past + length]`` bool, None without padding. Padding in front of a row has
    position 0.
    """
    if mask is None:
        return torch.arange(past, past + length, device=device).expand(rows, length)
    return (mask.to(device=device, dtype=torch.long).cumsum(dim=-1)[:, -length:] - 1).clamp(min=0)


def new_padding(
    given: torch.Tensor | None, sequence: CachedSequence, past: int, length: int, device: torch.device
) -> torch.Tensor | None:
    """``[B, length]`` bool, False at padding among the new tokens; None without padding.

    Args:
        given: 2-D ``attention_mask`` ``[B, past + length]``.
        sequence: what the new tokens continue.

    Raises:
        UnsupportedModelError: the mask hides other tokens of the past than when they were cached.
    """
    if given is None:
        return None
    given = given.to(device, torch.bool)
    mask = given[:, -length:]
    if length == 1:
        return mask
    if past > 0:
        before = given[:, :past]
        if bool((~before if sequence.mask is None else before != sequence.mask.to(device)).any()):
            raise UnsupportedModelError(
                "attention_mask hides other cached tokens than when they were cached; where prompts of several "
                "rows are padded anew, begin with a new cache"
            )
    return None if bool(mask.all()) else mask


def positions_of(
    given: torch.Tensor | None,
    sequence: CachedSequence,
    mask: torch.Tensor | None,
    past: int,
    embeds: torch.Tensor,
    *,
    own: bool,
    mrope: bool,
    keeps: bool,
) -> torch.Tensor:
    """Rotary positions of the new tokens, ``[B, L]``, or ``[3, B, L]`` for M-RoPE.

    Args:
        given: ``position_ids`` as they reach the decoder, None if there are none.
        sequence: what the new tokens continue, ``past`` tokens long.
        mask: ``[B, L]`` bool, False at padding; None without padding.
        embeds: ``[B, L, C]``, the new tokens.
        own: the caller gave the positions; otherwise a model around the decoder made them.
        mrope: the decoder has three axes.
        keeps: survivors keep their positions.

    Raises:
        UnsupportedModelError: positions of the caller that would be lost.
    """
    rows, length = embeds.shape[:2]
    usual = contiguous(past, extend_mask(sequence.mask, mask, past, rows, length), rows, length, embeds.device)
    if not mrope:
        return _linear_positions(given if own else None, keeps, usual, mask)
    following = None if sequence.positions is None else sequence.next_position(past)
    return _mrope_positions(given, own, following, usual, mask)


def axes_of(position_ids: torch.Tensor) -> torch.Tensor:
    """``[1 or 3, B, L]``: rotary positions as the decoder reads ``[B, L]``, ``[1, B, L]``,
    ``[3, B, L]`` and ``[4, B, L]`` (the first of four counts text)."""
    return position_ids[None] if position_ids.ndim == 2 else position_ids[-3:]


def _mrope_positions(
    given: torch.Tensor | None,
    own: bool,
    following: torch.Tensor | None,
    usual: torch.Tensor,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """``[3, B, L]``; ``following`` ``[3, B, 1]`` is the position of text behind what is cached,
    None where that is not known, and ``usual`` ``[B, L]`` counts tokens from the sequence's
    beginning."""
    rows, length = usual.shape
    # A model around the decoder makes positions from the offset of the last prompt that it saw,
    # which may have been another one than this cache's.
    if given is not None and (following is None or (own and not _from_offset(given))):
        return axes_of(given).to(usual.device).expand(3, rows, length).clamp(min=0)
    if following is None:
        return usual.expand(3, rows, length)
    ahead = torch.arange(length, device=usual.device) if mask is None else mask.long().cumsum(-1) - 1
    return (following.to(usual.device) + ahead).clamp(min=0)


def _linear_positions(
    given: torch.Tensor | None, keeps: bool, usual: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """``[B, L]``; ``given`` are the caller's own, ``usual`` counts tokens."""
    if given is None:
        return usual
    if given.ndim != 2:
        raise UnsupportedModelError(f"this decoder has one position a token; position_ids are {list(given.shape)}")
    given = given.to(usual.device).expand(usual.shape)
    differs = given != usual
    if mask is not None:
        differs &= mask
    if not bool(differs.any()):
        return usual
    if keeps:
        return given.clamp(min=0)
    # The short sequence is counted anew, so that these positions would be lost.
    raise UnsupportedModelError(_NOT_COUNTING)


def step_positions_of(given: torch.Tensor, usual: torch.Tensor, count: int, mrope: bool, keeps: bool) -> torch.Tensor:
    """Rotary positions of a decode step, ``[B, 1]`` or ``[3, B, 1]``, from the caller's
    ``position_ids``.

    Args:
        usual: the positions that go on from the cache.
        count: tokens of the unreduced sequence before this one.
        mrope: the decoder has three axes.
        keeps: survivors keep their positions.

    Raises:
        UnsupportedModelError: positions that would be lost.
    """
    given = given.to(usual.device)
    if mrope:
        return usual if _from_offset(given) else axes_of(given).expand_as(usual)
    if keeps:
        return given.expand_as(usual)
    # On other devices the host would wait for every token, so what `generate` makes is taken for
    # granted.
    if given.device.type == "cpu" and bool((given != count).any()):
        raise UnsupportedModelError(_NOT_COUNTING)
    return usual


_NOT_COUNTING = (
    "position_ids do not count the tokens of the sequence, and this method numbers the tokens that are left anew; "
    "leave position_ids out, or use a method that keeps positions"
)


def _from_offset(given: torch.Tensor) -> bool:
    """Whether ``generate`` made these of text positions and the offset of the model's last prompt,
    which may have been another one than this cache's: it gives them one axis."""
    return given.ndim == 3 and len(given) == 1
