"""The context in which a model's visual tokens are reduced.

The one idea: forward hooks give every decoder layer inputs of its own length. In a prefill they
hand the visual tokens to the method at each of its stages; the layers that follow get the hidden
states, rotary embeddings and causal mask that fit what is left. In later passes they get what fits
the KV cache, which knows what it lacks (``reduced_cache.py``). This file decides what a pass is:
one that stock code can run, a cheap decode step (``decode_step.py``), or one with hooks on the
layers (``forward.py``). No class is patched, and nothing stays when the context ends.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache

from sttm_lmms.decoder import CACHE, RECURRENT, check_cache, find_decoder, head_dim, layer_types, uses_mrope
from sttm_lmms.errors import NothingReducedError, UnsupportedModelError
from sttm_lmms.methods import check_method
from sttm_lmms.methods.base import Method
from sttm_lmms.runtime.decode_step import DecodeSteps
from sttm_lmms.runtime.exclusive import EAGER_MODE, Turns
from sttm_lmms.runtime.forward import Forward, Plan
from sttm_lmms.runtime.inputs import Given, ModelInputs, check_mask, with_embeds_and_cache
from sttm_lmms.runtime.layer_inputs import LayerInputs
from sttm_lmms.runtime.positions import new_padding, positions_of, step_positions_of
from sttm_lmms.runtime.reduced_cache import CachedSequence, LayerGroup, ReducedCache, reduced
from sttm_lmms.runtime.report import Report
from sttm_lmms.runtime.spans import check_spans, expand_spans
from sttm_lmms.runtime.timing import Stopwatch
from sttm_lmms.runtime.videos import VideoTokens
from sttm_lmms.types import Deepstack, VideoSpan

_ENTERING = threading.Lock()


@contextmanager
def reduce_tokens(
    model: nn.Module, config: Any, *, spans: Sequence[VideoSpan] | None = None, timing: bool = False
) -> Iterator[Report]:
    """Reduce the visual tokens of every prefill of ``model`` while the context is open.

    Args:
        model: a loaded transformers model; the classes of the supported families find their videos
            by themselves. Call or ``generate`` it as usual.
        config: a registered method, such as :class:`~sttm_lmms.STTMConfig`.
        spans: where the videos are, for inputs in which they cannot be found (``inputs_embeds``
            only, or another rotary decoder). They hold for every prefill of the context.
        timing: measure the device's time of each phase instead of the host's.

    Yields:
        A :class:`Report` that fills up while the context is open.

    Raises:
        UnsupportedModelError: the model or an input cannot be reduced; the message says what is
            supported.

    Warns:
        UserWarning: videos were seen, and none of them lost a token.

    Logits and hidden states of a reduced prefill have the length of the short sequence; the last
    position is the last token of the prompt as always. The KV cache reports the length of the whole
    sequence, so that chats, roll-backs and beams go on as in stock code; it can be continued in
    such a context alone. Threads may share a context: their forward passes take turns. Compiled
    code runs as it is written meanwhile.
    """
    reducer = TokenReducer(model, check_method(config), spans=spans, timing=timing, brief=False)
    with reducer:
        yield reducer.report
    if reducer.report.events:
        try:
            reducer.report.check_reduced()
        except NothingReducedError as error:
            warnings.warn(str(error), stacklevel=3)


class TokenReducer:
    """Hooks on one model; :func:`reduce_tokens` is the public face.

    Args:
        method: None reduces nothing and only keeps positions right when a cached prefix is
            continued, so that the baseline runs through the same code.
        brief: this context ends by itself, so contexts of other threads that are brief as well wait
            for it.
    """

    def __init__(
        self,
        model: Any,
        method: Method | None,
        *,
        spans: Sequence[VideoSpan] | None = None,
        timing: bool = False,
        brief: bool = True,
    ) -> None:
        self.model, self.decoder = model, find_decoder(model)
        self.method = None if method is None else check_method(method)
        self.report = Report()
        self._plan = Plan.of(self.method, len(self.decoder.layers))
        self._stopwatch = Stopwatch(model, enabled=timing)
        self._spans, self._unpadded = spans, False
        self._deepstack: Deepstack | None = None
        self._mrope = uses_mrope(self.decoder)
        self._steps = DecodeSteps(self.decoder, self.method)
        self._inputs, self._expecting = ModelInputs(model, self.decoder), False
        self._handles: list[Any] = []
        # The pass that is running:
        self._turns = Turns()
        self._forward: Forward | None = None
        self._sequence: CachedSequence | None = None
        self._step_handles: list[Any] = []
        # Contexts on one decoder:
        self._brief, self._left = brief, threading.Event()
        self._thread: threading.Thread | None = None

    # -- the context -------------------------------------------------------------------------------------------

    def __enter__(self) -> TokenReducer:
        while True:
            with _ENTERING:
                other = self._attached()
                if other is None:
                    self._attach()
                    return self
            if other._thread is threading.current_thread() or not (self._brief and other._brief):
                raise UnsupportedModelError("this model's tokens are already being reduced; leave that context first")
            other._left.wait()  # it ends by itself, so nobody waits for a user

    def __exit__(self, *_: object) -> None:
        self._turns.take()  # waits for a pass that runs in another thread
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._end_pass()
        if self._ignores_compiled:
            EAGER_MODE.leave()
        self._left.set()

    def _attached(self) -> TokenReducer | None:
        """Whose hooks are on the decoder now."""
        owners = [getattr(hook, "__self__", None) for hook in self.decoder._forward_pre_hooks.values()]
        return next((owner for owner in owners if isinstance(owner, TokenReducer)), None)

    def _attach(self) -> None:
        self._thread = threading.current_thread()
        self._left.clear()
        self._handles += [
            *self._inputs.attach(),
            self.decoder.register_forward_pre_hook(self._before_decoder, with_kwargs=True),
            # Called after errors as well, so that a pass that failed leaves no hooks on the layers.
            self.decoder.register_forward_hook(self._after_decoder, always_call=True),
        ]
        # Flex attention is compiled itself, and needs far too much memory uncompiled.
        self._ignores_compiled = "flex" not in self.decoder.config._attn_implementation
        if self._ignores_compiled:
            EAGER_MODE.enter()

    # -- what the engine tells and asks ------------------------------------------------------------------------

    def expect(self, spans: Sequence[VideoSpan], *, unpadded: bool = False, deepstack: Deepstack | None = None) -> None:
        """Where the videos of the next prefills are; ``unpadded`` promises that no row has padding,
        which spares a look at the mask on the device; ``deepstack`` is what the decoder adds, where
        embeddings are all it is given. From now on the positions of all passes that continue a
        cache are made here, whatever they are called with."""
        self._spans, self._unpadded, self._deepstack = tuple(spans), unpadded, deepstack
        self._expecting = True

    @property
    def _keeps_positions(self) -> bool:
        return self.method is None or self.method.positions == "keep"

    @property
    def edits_cache(self) -> bool:
        """True if decode steps change the KV cache, so that a shared prefix must be copied for each
        question."""
        return bool(self._plan.edits)

    def continue_prompt(self, cache: Cache) -> None:
        """The next forward pass over ``cache`` still belongs to the prompt."""
        known = reduced(cache)
        if known is not None:
            known.sequence.prompt_length = None

    # -- hooks -------------------------------------------------------------------------------------------------

    def _before_decoder(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self._turns.take()
        self._clean_up()  # after a pass that was interrupted
        if not self._handles:  # the context was left while this thread waited
            self._turns.give_back()
            return None
        if args:
            raise UnsupportedModelError("the decoder was called with positional arguments; name them")
        given = self._inputs.take(kwargs)
        kwargs = with_embeds_and_cache(decoder, kwargs)
        cache, embeds = kwargs[CACHE], kwargs["inputs_embeds"]
        known = self._known(cache)
        past = int(cache.get_seq_length()) if cache is not None else 0  # a tensor in static caches
        # The cheap step: one token and no padding, so that the host knows all lengths.
        if known is not None and embeds.shape[1] == 1 and self._steps.covers(known.sequence):
            return (), self._decode_step(kwargs, given, known)
        spans = self._find_spans(kwargs, given, past)
        if past == 0:
            self.report.prefills += 1
            if self._deepstack is not None:  # a model given embeddings alone hands on none
                kwargs.update(self._deepstack.inputs(*embeds.shape[:2]))
        # Text only, in a cache that was never reduced: stock code runs it as it is. The baseline
        # goes through the hooks all the same, so that its times and positions are comparable.
        stock = known is None and not spans and self.method is not None
        if not stock:
            check_cache(cache)
        check_mask(kwargs, past, stock=stock)
        if spans:
            self._check_prompt_of_videos(given)
        if stock:
            return (), kwargs
        return (), self._general_pass(kwargs, given, known, past, spans)

    def _after_decoder(self, _: nn.Module, __: object, output: object) -> None:
        if not self._turns.mine:  # a pass that began before this context
            return
        forward = self._forward
        try:
            if self._sequence is not None and output is not None:
                self._sequence.end()
            if forward is not None and output is not None:
                forward.finish()
                if forward.inputs.cache is not None:
                    self._steps.prepare(forward.inputs.cache, output[0])  # type: ignore[index]
        finally:
            self._end_pass()

    def _end_pass(self) -> None:
        self._clean_up()
        self._turns.give_back()

    def _clean_up(self) -> None:
        """Take off what belongs to one pass."""
        if self._forward is not None:
            self._forward.remove()
        for handle in self._step_handles:
            handle.remove()
        self._step_handles.clear()
        if self._sequence is not None:
            self._sequence.new_tokens = None
        self._forward = self._sequence = None

    # -- the three kinds of pass -------------------------------------------------------------------------------

    def _known(self, cache: Cache | None) -> ReducedCache | None:
        """``cache`` if a context has filled it, None for any other."""
        known = reduced(cache)
        method = self.method if known is None else known.sequence.method
        if method is not self.method and method != self.method:
            raise UnsupportedModelError(
                f"this KV cache was filled with {method}; continue it with these settings, not with {self.method}"
            )
        return known

    def _begin(self, sequence: CachedSequence, past: int, length: int) -> None:
        sequence.begin(past, length)
        self._sequence = sequence

    def _decode_step(self, kwargs: dict[str, Any], given: Given, cache: ReducedCache) -> dict[str, Any]:
        """Arguments of the decoder for one token of sequences without padding."""
        past = cache.get_seq_length()
        check_mask(kwargs, past, stock=False)
        positions, hooks = self._steps.step(cache, kwargs["inputs_embeds"])
        if given.positions and not self._expecting:
            ids = kwargs["position_ids"]
            positions = step_positions_of(ids, positions, past, self._mrope, self._keeps_positions)
        self._begin(cache.sequence, past, 1)
        for layer, hook in hooks:
            self._step_handles.append(
                self.decoder.layers[layer].register_forward_pre_hook(hook, prepend=True, with_kwargs=True)
            )
        return {**kwargs, "attention_mask": None, "position_ids": positions}

    def _general_pass(
        self,
        kwargs: dict[str, Any],
        given: Given,
        known: ReducedCache | None,
        past: int,
        spans: Sequence[VideoSpan],
    ) -> dict[str, Any]:
        """Arguments of the decoder for a pass in which layers may need inputs of their own."""
        embeds = kwargs["inputs_embeds"]
        rows, length = embeds.shape[:2]
        check_spans(spans, length, rows)
        cache = known
        if known is None and kwargs[CACHE] is not None:
            cache = self._take_over(kwargs[CACHE], kwargs.get("attention_mask"), past)
        sequence = CachedSequence(self.method) if cache is None else cache.sequence
        # Reading a mask waits for the device: not where it is known to hide nothing.
        unpadded = self._unpadded if length > 1 else not sequence.padded
        given_mask = None if unpadded else kwargs.get("attention_mask")
        mask = new_padding(given_mask, sequence, past, length, embeds.device)
        if mask is not None and length > 1 and past > 0 and RECURRENT in layer_types(self.decoder):
            raise UnsupportedModelError(
                "padding behind cached tokens lets the state of recurrent layers decay; continue prompts of one length "
                "together, or one by one"
            )
        if spans and mask is not None and bool((mask[:, :-1] & ~mask[:, 1:]).any()):
            raise UnsupportedModelError("reduced batches need padding on the left (tokenizer.padding_side='left')")
        positions = positions_of(
            kwargs.get("position_ids"),
            sequence,
            mask,
            past,
            embeds,
            own=given.positions and not self._expecting,
            mrope=self._mrope,
            keeps=self._keeps_positions,
        )
        self._begin(sequence, past, length)
        if spans:  # rows of different lengths do not end at one place in front of the videos
            start = min(span.start for span in spans) if rows == 1 else 0
            sequence.merged.append((past + start, past + max(span.end for span in spans)))
        inputs = LayerInputs(self.decoder, self.method, sequence, cache, past, mask, positions)
        padding, channels = inputs.batch.padding, head_dim(self.decoder)
        videos = [VideoTokens.of(span, padding[span.row], embeds, channels) for span in spans]
        self._forward = Forward(self._plan, inputs, videos, self.report, self._stopwatch)
        return self._forward.start(kwargs)

    def _find_spans(self, kwargs: dict[str, Any], given: Given, past: int) -> Sequence[VideoSpan]:
        embeds = kwargs["inputs_embeds"]
        length = embeds.shape[1]
        if self.method is None or (past > 0 and length == 1):  # a decode step: spares a look at the device
            return ()
        if self._spans is not None:
            return expand_spans(self._spans, embeds, trusted=self._expecting) if past == 0 else ()
        if given.input_ids is None and (past > 0 or length == 1):
            return ()
        return self._inputs.find_spans(given, kwargs.get("position_ids"), kwargs[CACHE], past)

    def _check_prompt_of_videos(self, given: Given) -> None:
        """Refuse what a caller may ask for, and a prompt with fewer tokens cannot give."""
        if given.chosen_logits:
            raise UnsupportedModelError(
                "logits_to_keep names places of the full sequence, of which tokens are taken out; give a number (the "
                "logits of that many last tokens) instead of a tensor"
            )
        if given.last_logits > 1 and self._plan.needs_end_of_prompt and not self._expecting:
            raise UnsupportedModelError(
                f"{self._plan.method} has to know where the prompt ends, but the last {given.last_logits - 1} tokens "
                "may be candidates (prompt lookup, assisted decoding) or an answer (logits_to_keep); feed them after "
                "the prompt"
            )

    def _take_over(self, cache: Cache, mask: torch.Tensor | None, past: int) -> ReducedCache:
        """A cache that is empty or holds unreduced tokens alone, made ready for fewer tokens in
        some layers."""
        taken = ReducedCache.take_over(cache, len(self.decoder.layers), self.method)
        if mask is not None and past > 0 and not bool(mask[:, :past].all()):
            taken.sequence.mask = mask[:, :past].bool()
            taken.sequence.groups = (LayerGroup(0, taken.sequence.mask),)
        return taken
