"""The KV cache of a reduced sequence: its layers hold fewer tokens than it has seen.

transformers asks a cache for one length, and cuts inputs, masks and roll-backs by it. A reduced
prefill leaves layers of several lengths. So the cache counts in tokens of the sequence before
reduction, and each layer in those it holds. What must be known to go on (:class:`CachedSequence`)
is kept with the cache and follows it through copies, beams, selections and roll-backs.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer

from sttm_lmms.decoder import cache_tensors, is_recurrent
from sttm_lmms.errors import UnsupportedModelError
from sttm_lmms.methods.base import Method


@dataclass(frozen=True)
class LayerGroup:
    """Consecutive layers that hold the same tokens, up to the first layer of the next group.

    Attributes:
        first: decoder layer.
        mask: ``[B, S]`` bool over the tokens that the layers held when it was made, False at
            padding; None without.
    """

    first: int
    mask: torch.Tensor | None = None


class CachedVideo(NamedTuple):
    """A video behind a cache, for methods that edit the cache.

    Attributes:
        state: what the method remembers of it.
        entries: its entries in the layers from the last reduction on.
        visual_tokens: its tokens before reduction.
    """

    state: dict[str, Any]
    entries: range
    visual_tokens: int


class CachedSequence:
    """The sequence behind a cache, as it was before reduction. All counts and indices are in its
    tokens.

    Attributes:
        method: the settings that filled the cache; None for the baseline.
        mask: ``[B, L]`` bool, False at padding; None without padding.
        groups: what the layers hold.
        positions: ``[3, B, K]`` int64, M-RoPE positions of the first K tokens, behind which text
            goes on; None for decoders with one position a token.
        prompt_length: tokens of the prompt; None while it is not complete (a prefix that a question
            continues).
        merged: ``(start, end)`` of each stretch that cannot be cut in two, because its tokens were
            merged.
        videos: those of methods that edit the cache.
        new_tokens: length of the forward pass that is running, before reduction; None outside of
            one.
        length: tokens after the last pass or roll-back that ended.
        started: False as long as no pass has begun; then the cache is like any other.
    """

    def __init__(self, method: Method | None) -> None:
        self.method = method
        self.clear()

    def clear(self) -> None:
        """Forget all tokens."""
        self.mask: torch.Tensor | None = None
        self.groups: tuple[LayerGroup, ...] = ()
        self.positions: torch.Tensor | None = None
        self.prompt_length: int | None = None
        self.merged: list[tuple[int, int]] = []
        self.videos: tuple[CachedVideo, ...] = ()
        self.new_tokens: int | None = None
        self.length, self.started = 0, False
        self._next: torch.Tensor | None = None

    @property
    def padded(self) -> bool:
        """True if any row has padding in any layer."""
        return self.mask is not None or any(group.mask is not None for group in self.groups)

    def in_prompt(self, length: int) -> bool:
        """True if the token at index ``length`` belongs to the prompt and was not generated."""
        return self.prompt_length is None or length < self.prompt_length

    def group_of(self, layer: int) -> LayerGroup:
        """The group that ``layer`` belongs to."""
        return next((group for group in reversed(self.groups) if group.first <= layer), LayerGroup(0))

    def next_position(self, length: int) -> torch.Tensor:
        """``[3, B, 1]`` int64: M-RoPE position of a text token at index ``length``."""
        assert self.positions is not None
        if self._next is None:
            # Rows end together, so the last token is real; text goes on after its largest
            # coordinate, as in generate.
            self._next = (self.positions[..., -1:].amax(dim=0, keepdim=True) + 1).expand(3, -1, -1)
        return self._next + (length - self.positions.shape[-1])

    def append_positions(self, positions: torch.Tensor, length: int) -> None:
        """Note the M-RoPE ``positions`` ``[3, B, n]`` of the tokens from index ``length`` on."""
        if self.positions is not None:
            known = self.positions.shape[-1]
            if known < length:  # decode steps in between, which nobody wrote down
                steps = torch.arange(length - known, device=self.positions.device)
                self.positions = torch.cat((self.positions, self.next_position(known) + steps), dim=-1)
            positions = torch.cat((self.positions, positions.to(self.positions.device)), dim=-1)
        self.positions, self._next = positions, None

    def check_crop(self, length: int) -> None:
        """Raise ``UnsupportedModelError`` unless the first ``length`` tokens can be told from those
        behind them."""
        for start, end in self.merged:
            if start < length < end:
                raise UnsupportedModelError(
                    f"this KV cache cannot be cut back to {length} tokens: the tokens {start} to {end} were reduced "
                    f"together; cut it back to {start} tokens or fewer, or leave {end} or more"
                )

    def begin(self, past: int, new_tokens: int) -> None:
        """A pass over ``new_tokens`` begins behind the first ``past`` ones."""
        self.started, self.length, self.new_tokens = True, past, new_tokens

    def end(self) -> None:
        """The pass has ended."""
        self.length += self.new_tokens or 0
        self.new_tokens = None

    def notice(self, length: int) -> bool:
        """Take note of layers that hold ``length`` tokens, perhaps because they were cut one by
        one; False if a pass was interrupted."""
        if length < self.length:
            lost = [(start, end) for start, end in self.merged if length < end]
            if lost:
                raise UnsupportedModelError(
                    f"the layers of this KV cache were cut by hand through the tokens {lost[0][0]} to {lost[0][1]}, "
                    "which were reduced together; use the `crop` of the cache"
                )
            self.crop(length)
        return length <= self.length

    def crop(self, length: int) -> None:
        """Forget all but the first ``length`` tokens."""
        if length == 0:
            self.clear()
            return
        self.length = length
        self.merged = [stretch for stretch in self.merged if stretch[0] < length]
        self.mask = None if self.mask is None else self.mask[:, :length]
        if self.positions is not None:
            self.positions, self._next = self.positions[..., :length], None

    def select_rows(self, rows: torch.Tensor) -> None:
        """Go on with the batch rows ``rows`` ``[B']``, some of which may be there several times or
        not at all."""
        rows = torch.as_tensor(rows)
        if self.mask is not None:
            self.mask = self.mask[rows.to(self.mask.device)]
        self.groups = tuple(
            group if group.mask is None else LayerGroup(group.first, group.mask[rows.to(group.mask.device)])
            for group in self.groups
        )
        if self.positions is not None:
            self.positions, self._next = self.positions[:, rows.to(self.positions.device)], None


class ReducedCache(Cache):
    """A cache that reports the length of the sequence before reduction; :meth:`take_over` makes one
    of any other.

    Attributes:
        sequence: what is known about it.
        removals: for each layer ``(start of the stretch in which they were, how many)`` of the
            tokens that it lacks; the start is -1 for those that a method dropped when they had been
            cached.
        passed: for each recurrent layer, the tokens of the sequence that have passed through it;
            its state does not tell.
    """

    sequence: CachedSequence
    removals: list[list[tuple[int, int]]]
    passed: list[int]

    @classmethod
    def take_over(cls, cache: Cache, layers: int, method: Method | None) -> ReducedCache:
        """``cache`` itself, because callers hold on to it; it may hold unreduced tokens."""
        length = int(cache.get_seq_length())
        while len(cache.layers) < layers:
            cache.layers.append((cache.layer_class_to_replicate or DynamicLayer)())
        if not isinstance(cache, ReducedCache):
            # The object itself changes its class: a wrapper would be unknown to whoever holds the
            # cache.
            kind = type(cache)
            cache.__class__ = (
                ReducedDynamicCache if kind is DynamicCache else type(f"Reduced{kind.__name__}", (cls, kind), {})
            )
        taken = cast(ReducedCache, cache)
        taken.sequence = CachedSequence(method)
        taken.removals = [[] for _ in cache.layers]
        taken.passed = [length] * len(cache.layers)
        return taken

    def held(self, layer: int) -> int:
        """Tokens that ``layer`` has seen."""
        if is_recurrent(self.layers[layer]):
            return self.passed[layer] - sum(count for _, count in self.removals[layer])
        return super().get_seq_length(layer)

    def lengths(self) -> set[int]:
        """What the layers say about the length of the sequence; they agree unless somebody changed
        them by hand."""
        return {self._length(layer) for layer in range(len(self.layers))}

    def _length(self, layer: int) -> int:
        return self.held(layer) + sum(count for _, count in self.removals[layer])

    def get_seq_length(self, layer_idx: int | None = None) -> int:
        """Tokens of the sequence, or those that one layer has seen."""
        return self._length(0) if layer_idx is None else super().get_seq_length(layer_idx)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append to a layer, during a forward pass under hooks alone."""
        self._note(layer_idx, key_states.shape[-2])
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def update_conv_state(self, conv_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As :meth:`update`, of a recurrent layer in a pass over several tokens."""
        self._note(layer_idx, conv_states.shape[-1])
        return super().update_conv_state(conv_states, layer_idx, *args, **kwargs)

    def update_recurrent_state(
        self, recurrent_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """As :meth:`update`, of a recurrent layer in every pass."""
        self._check_hooked()
        self.passed[layer_idx] += self.sequence.new_tokens or 0
        return super().update_recurrent_state(recurrent_states, layer_idx, *args, **kwargs)

    def _note(self, layer: int, tokens: int) -> None:
        """``layer`` is given that many of the new tokens."""
        self._check_hooked()
        # A layer that gets fewer than the pass has lacks those that were reduced in front of it.
        missing = (self.sequence.new_tokens or tokens) - tokens
        if missing:
            self.removals[layer].append((self.sequence.merged[-1][0], missing))

    def _check_hooked(self) -> None:
        if self.sequence.new_tokens is None and self.sequence.started:
            raise UnsupportedModelError(
                "this KV cache holds reduced tokens and can be continued inside of reduce_tokens(...) alone, with the "
                "settings that filled it; here the context was left, or the decoder's hooks were bypassed"
            )

    def crop(self, tokens_to_remove: int) -> None:
        """Cut back by that many tokens of the sequence (a negative number or 0), or to that many.

        Raises:
            UnsupportedModelError: the cut would go through tokens that were reduced together.
        """
        length = self.get_seq_length()
        left = max(0, length + tokens_to_remove) if tokens_to_remove <= 0 else min(length, tokens_to_remove)
        self.sequence.check_crop(left)
        layers: list[Any] = self.layers
        if 0 < left < length and any(is_recurrent(layer) for layer in layers):
            raise UnsupportedModelError(
                f"this KV cache cannot be cut back to {left} tokens: its recurrent layers hold a state that all "
                f"{length} have entered; copy the cache (copy.deepcopy) where you want to come back to"
            )
        for index, layer in enumerate(layers):
            self.removals[index] = [removal for removal in self.removals[index] if removal[0] < left] if left else []
            surplus = self._length(index) - left
            if is_recurrent(layer):
                if surplus:  # to nothing, as checked above
                    layer.reset()
                    self.passed[index] = 0
            elif surplus or getattr(layer, "is_sliding", False):  # windows drop what they kept for a roll-back
                layer.crop(-surplus)
        if left < length:
            self.sequence.crop(left)

    def reset(self) -> None:
        super().reset()
        self.removals = [[] for _ in self.layers]
        self.passed = [0] * len(self.layers)
        self.sequence.clear()

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        self.sequence.select_rows(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if held := cache_tensors(self):  # else it is empty, and has no rows yet
            self.batch_select_indices(torch.arange(len(held[0])).repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        layers: list[Any] = self.layers
        for layer in layers:
            # A recurrent layer knows this by the name that beam search uses alone.
            (layer.reorder_cache if is_recurrent(layer) else layer.batch_select_indices)(indices)
        self.sequence.select_rows(indices)

    def branch(self) -> ReducedCache:
        """A cache that goes its own way from here on; it shares keys and values, which no cache writes
        in place, and has recurrent states of its own."""
        other = copy.copy(self)
        other.layers = [copy.deepcopy(layer) if is_recurrent(layer) else copy.copy(layer) for layer in self.layers]
        other.passed = list(self.passed)
        other.removals = [list(removals) for removals in self.removals]
        other.sequence = copy.copy(self.sequence)
        other.sequence.merged = list(self.sequence.merged)
        other.sequence.videos = tuple(video._replace(state=dict(video.state)) for video in self.sequence.videos)
        return other


class ReducedDynamicCache(ReducedCache, DynamicCache):
    """What the cache of ``generate`` becomes."""


def reduced(cache: Cache | None) -> ReducedCache | None:
    """``cache`` if hooks have filled it; None for any other cache, and for one that is empty.

    Raises:
        UnsupportedModelError: its layers do not agree on the length of the sequence, or were cut
            through tokens that were reduced together.
    """
    if cache is None or not cache.layers or cache.is_compileable:
        return None
    if isinstance(cache, ReducedCache) and cache.sequence.started:
        lengths = cache.lengths()
        if len(lengths) == 1 and cache.sequence.notice(*lengths):
            return cache
    else:
        lengths = {layer.get_seq_length() for layer in cache.layers if isinstance(layer, CacheLayerMixin)}
        if len(lengths - {0}) <= 1:  # layers that use the keys and values of others stay empty
            return None
    raise UnsupportedModelError(
        f"the layers of this KV cache have seen {' or '.join(map(str, sorted(lengths)))} tokens: it was rebuilt from "
        "keys and values of reduced tokens, some of its layers were cut by hand, or a forward pass was interrupted; "
        "copy caches with copy.deepcopy, cut them with `crop`, or begin a new one"
    )
