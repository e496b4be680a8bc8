"""What a forward pass was given: ids, videos and positions, read from the modules around a
decoder."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache

from sttm_lmms.decoder import CACHE
from sttm_lmms.errors import UnsupportedModelError
from sttm_lmms.runtime.positions import axes_of
from sttm_lmms.runtime.spans import check_image_positions, knows_videos_of, locate_spans
from sttm_lmms.types import VideoSpan


@dataclass(frozen=True)
class Given:
    """What the caller of one forward pass gave, beside what reaches the decoder.

    Attributes:
        input_ids: ``[B, L]``, None if there were only embeddings.
        positions: whether the caller gave ``position_ids``; a model around a decoder makes its own
            otherwise.
        chosen_logits: whether ``logits_to_keep`` names places in the sequence.
        last_logits: of how many last tokens logits are wanted; 1 or fewer where only the next token
            counts.
        visuals: whether there was anything to see: pixels, features, or embeddings that may hold
            some; unknown, and so True, where the decoder itself was called.
    """

    input_ids: torch.Tensor | None = None
    positions: bool = False
    chosen_logits: bool = False
    last_logits: int = 0
    visuals: bool = False


_VISUALS = ("pixel_values", "pixel_values_videos", "inputs_embeds", "mm_encoder_outputs")
"""Arguments of models that may carry what is seen."""


class ModelInputs:
    """Hooks that note the inputs of all modules around a decoder, until the decoder is called.

    A prompt may enter at any of them: wrappers (PEFT, ``torch.compile``) call ``generate`` of the
    model inside, and a caller may use ``model.model``.

    Args:
        model: what the user gave.
        decoder: the text decoder inside of it.

    Raises:
        UnsupportedModelError: a wrapper runs copies of the model, which hooks do not reach.
    """

    def __init__(self, model: nn.Module, decoder: nn.Module) -> None:
        self.modules = _modules_around(model, decoder)
        for module in self.modules:
            if isinstance(module, nn.DataParallel) and len(module.device_ids) > 1:
                raise UnsupportedModelError("DataParallel runs copies of the model; give its `module` instead")
        configs = [module.config for module in self.modules if hasattr(module, "config")]
        self.config: Any = next((config for config in configs if knows_videos_of(config)), None)
        if self.config is None:
            self.config = configs[0] if configs else decoder.config
        self._noted = threading.local()  # threads may share a model
        self._prompts: WeakKeyDictionary[Cache, _Prompt] = WeakKeyDictionary()

    def attach(self) -> list[Any]:
        """Register the hooks; returns their handles."""
        handles: list[Any] = []
        for depth, module in enumerate(self.modules):
            handles += [
                module.register_forward_pre_hook(partial(self._note, depth), with_kwargs=True),
                module.register_forward_hook(partial(self._forget, depth), always_call=True),
            ]
        return handles

    def _note(self, depth: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if kwargs.get("labels") is not None:
            raise UnsupportedModelError("reduced sequences are shorter than `labels`; reduce_tokens is for inference")
        self._forget(depth)  # of a call that an error ended before this one
        first = args[0] if args and isinstance(args[0], torch.Tensor) and not args[0].is_floating_point() else None
        ids = kwargs.get("input_ids")
        given = Given(
            input_ids=first if ids is None else ids,
            positions=kwargs.get("position_ids") is not None,
            chosen_logits=isinstance(kwargs.get("logits_to_keep"), torch.Tensor),
            last_logits=wanted if isinstance(wanted := kwargs.get("logits_to_keep"), int) else 0,
            visuals=any(kwargs.get(name) is not None for name in _VISUALS),
        )
        self._noted.calls = {**self._calls, depth: given}

    @property
    def _calls(self) -> dict[int, Given]:
        """Depth of each module that is running -> what it was given."""
        return getattr(self._noted, "calls", {})

    def _forget(self, depth: int, *_: object) -> None:
        self._noted.calls = {at: given for at, given in self._calls.items() if at < depth}

    def take(self, kwargs: dict[str, Any]) -> Given:
        """What this call of the decoder was given; ``kwargs`` are its own arguments."""
        calls = list(self._calls.values())
        self._noted.calls = {}
        own = kwargs.get("input_ids")
        # Ids of the innermost module are nearest to what the decoder gets. Positions are the
        # caller's own only if the outermost one was given them: a model makes positions for its
        # decoder.
        ids = [call.input_ids for call in calls if call.input_ids is not None]
        return Given(
            input_ids=own if own is not None else ids[-1] if ids else None,
            positions=calls[0].positions if calls else kwargs.get("position_ids") is not None,
            chosen_logits=any(call.chosen_logits for call in calls),
            last_logits=max((call.last_logits for call in calls), default=0),
            visuals=not calls or any(call.visuals for call in calls),
        )

    def find_spans(
        self, given: Given, position_ids: torch.Tensor | None, cache: Cache | None, past: int
    ) -> list[VideoSpan]:
        """The videos among the new tokens of a pass.

        Args:
            given: what was given of the new tokens.
            position_ids: as they reach the decoder.
            cache: what the pass continues or fills.
            past: tokens of the unreduced sequence before the pass.

        Raises:
            UnsupportedModelError: there are no ids, a video is spread over several passes, or the
                tokens of a video do not form its grid.
        """
        input_ids = given.input_ids
        if input_ids is None:
            raise UnsupportedModelError(
                "videos cannot be found in `inputs_embeds` alone (`generate` hands on nothing else where both are "
                "given); call the model with input_ids and pixel values, or give reduce_tokens(..., spans=)"
            )
        # The whole prompt is searched, so that a video that began in an earlier pass is noticed.
        prompt = _Prompt(input_ids.cpu(), None if position_ids is None else axes_of(position_ids).cpu())
        before = self._prompts.get(cache) if cache is not None and past else None
        if before is not None and prompt.repeats(before.first(past)):
            raise UnsupportedModelError(
                "these tokens are in the KV cache already: prompt lookup and assisted decoding begin with the whole "
                "sequence, so they cannot continue a cache; leave past_key_values out, or generate without them"
            )
        if before is not None and before.continued_by(prompt):
            prompt = before.first(past).and_then(prompt)
        if cache is not None:
            self._prompts[cache] = prompt
        if past and not given.visuals:
            return []  # placeholders without anything to see are text, such as candidates of prompt lookup
        start = prompt.input_ids.shape[1] - input_ids.shape[1]
        spans = locate_spans(self.config, prompt.input_ids, prompt.positions)
        for span in spans:
            if span.start < start < span.end:
                raise UnsupportedModelError(
                    f"a video of {span.length} tokens is spread over several forward passes; reduced tokens need all "
                    "of it in one (leave out prefill_chunk_size)"
                )
        if past:
            check_image_positions(self.config, prompt.input_ids[:, start:], prompt.positions)
        return [_moved(span, -start) for span in spans if span.start >= start]


def with_embeds_and_cache(decoder: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A decoder's arguments with embeddings and a cache, which it would make of the others
    itself."""
    kwargs = dict(kwargs)
    if kwargs.get("inputs_embeds") is None:
        kwargs["inputs_embeds"] = decoder.embed_tokens(kwargs.pop("input_ids"))
    use_cache = kwargs.get("use_cache")
    given = kwargs.pop("past_key_values", None)  # transformers 5.24 takes this name, too
    kwargs[CACHE] = kwargs.get(CACHE) if given is None else given
    if kwargs[CACHE] is None and (decoder.config.use_cache if use_cache is None else use_cache):
        kwargs[CACHE] = DynamicCache(config=decoder.config)
    return kwargs


def check_mask(kwargs: Mapping[str, Any], past: int, *, stock: bool) -> None:
    """Raise ``UnsupportedModelError`` for an ``attention_mask`` that a reduced sequence cannot
    honour.

    Args:
        past: tokens of the sequence before the pass.
        stock: the pass needs no hooks.
    """
    mask, length = kwargs.get("attention_mask"), past + kwargs["inputs_embeds"].shape[1]
    flat = isinstance(mask, torch.Tensor) and mask.ndim == 2
    if mask is not None and not flat and not stock:
        raise UnsupportedModelError("reduced tokens need a 2-D attention_mask [B, L] (1 = real token) or none")
    columns = mask.shape[1] if isinstance(mask, torch.Tensor) and flat else length
    if columns != length and (past > 0 or not stock):
        raise UnsupportedModelError(
            f"attention_mask has {columns} columns, but the KV cache has seen {past} tokens and {length - past} are new"
        )


@dataclass(frozen=True)
class _Prompt:
    """Ids ``[B, L]`` and rotary positions ``[A, B, L]`` of the prompt so far, on the host."""

    input_ids: torch.Tensor
    positions: torch.Tensor | None

    def continued_by(self, new: _Prompt) -> bool:
        """Whether both are parts of one batch, with positions of one kind."""
        rows = len(self.input_ids) == len(new.input_ids)
        if self.positions is None or new.positions is None:
            return rows and self.positions is new.positions
        return rows

    def repeats(self, before: _Prompt) -> bool:
        """Whether this begins with all tokens of ``before``."""
        length = before.input_ids.shape[1]
        return length > 1 and torch.equal(self.input_ids[:, :length], before.input_ids)

    def first(self, length: int) -> _Prompt:
        """The first tokens: a caller may have cut the cache back."""
        positions = None if self.positions is None else self.positions[..., :length]
        return _Prompt(self.input_ids[:, :length], positions)

    def and_then(self, new: _Prompt) -> _Prompt:
        """Both, one behind the other."""
        ids = torch.cat([self.input_ids, new.input_ids], dim=1)
        if self.positions is None or new.positions is None:
            return _Prompt(ids, None)
        rows = len(ids)
        parts = [part.expand(3, rows, -1) for part in (self.positions, new.positions)]
        return _Prompt(ids, torch.cat(parts, dim=-1))


def _modules_around(model: nn.Module, decoder: nn.Module) -> list[nn.Module]:
    """The modules that contain ``decoder``, outermost first."""
    name = next(name for name, module in model.named_modules() if module is decoder)
    parts = name.split(".") if name else []
    return [model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts))]


def _moved(span: VideoSpan, by: int) -> VideoSpan:
    pieces = span.pieces and tuple((start + by, length) for start, length in span.pieces)
    return replace(span, start=span.start + by, pieces=pieces)
