"""The one idea that carries the runtime: forward hooks that give every decoder layer inputs of its own length.

On a prefill the hooks hand the visual tokens to the method at each of its stages; the layers that follow get the hidden
states, rotary embeddings and causal mask that fit what is left. On later steps they get what fits their own KV length.
Hooks on layers exist only during the passes that need them; no class is patched, and nothing stays when the context
ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache

from sttm_lmms.decoder import CACHE, check_cache, find_decoder, head_dim, uses_mrope
from sttm_lmms.errors import UnsupportedModelError
from sttm_lmms.methods import check_method
from sttm_lmms.methods.base import Method, Stage
from sttm_lmms.runtime import decode_step
from sttm_lmms.runtime.cache_view import StepView
from sttm_lmms.runtime.deepstack import Additions, added_layers
from sttm_lmms.runtime.forward import Forward
from sttm_lmms.runtime.inputs import (
    Given,
    ModelInputs,
    linear_positions_of,
    mrope_positions_of,
    step_positions_of,
)
from sttm_lmms.runtime.probe import AttentionInputs, VideoProbe
from sttm_lmms.runtime.report import Report, StageEvent
from sttm_lmms.runtime.sites import hook_mlp
from sttm_lmms.runtime.spans import check_spans, expand_spans
from sttm_lmms.runtime.timing import Stopwatch
from sttm_lmms.runtime.tracks import CacheState
from sttm_lmms.runtime.videos import Batch, VideoTokens, reduce_batch
from sttm_lmms.types import Deepstack, Kept, VideoSpan


@contextmanager
def reduce_tokens(
    model: nn.Module, config: Any, *, spans: Sequence[VideoSpan] | None = None, timing: bool = False
) -> Iterator[Report]:
    """Reduce the visual tokens of every prefill of ``model`` while the context is open.

    Args:
        model: a loaded transformers model; the classes of the supported families find their videos by themselves.
            Call or ``generate`` it as usual.
        config: a registered method, such as :class:`~sttm_lmms.STTMConfig`.
        spans: where the videos are, for inputs in which they cannot be found (``inputs_embeds`` only, or another
            rotary decoder). They hold for every prefill of the context.
        timing: measure the device's time of each phase instead of the host's.

    Yields:
        A :class:`Report` that fills up while the context is open.

    Raises:
        UnsupportedModelError: the model or an input cannot be reduced; the message says what is supported.

    Logits and hidden states of a reduced prefill have the length of the short sequence; the last position is the
    last token of the prompt as always.
    """
    reducer = TokenReducer(model, check_method(config), spans=spans, timing=timing)
    with reducer:
        yield reducer.report


class TokenReducer:
    """Hooks on one model; :func:`reduce_tokens` is the public face.

    ``method=None`` reduces nothing and only keeps positions right when a cached prefix is continued, so that the
    baseline runs through the same code.
    """

    def __init__(
        self, model: Any, method: Method | None, *, spans: Sequence[VideoSpan] | None = None, timing: bool = False
    ) -> None:
        self.model = model
        self.decoder = find_decoder(model)
        self.method = None if method is None else check_method(method)
        self.report = Report()
        layers = len(self.decoder.layers)
        stages = [] if method is None else [s if isinstance(s, Stage) else Stage(s) for s in method.stages(layers)]
        self._stages = set(stages)
        self._cache_stages = set() if method is None else set(method.cache_stages(layers))
        for layer in [stage.layer for stage in stages] + sorted(self._cache_stages):
            if not 0 <= layer < layers:
                raise ValueError(f"start_layer={layer} is out of range; this model has layers 0..{layers - 1}")
        self._stopwatch = Stopwatch(model, enabled=timing)
        self._spans, self._unpadded = spans, False
        self._inputs, self._given, self._expecting = ModelInputs(model, self.decoder), Given(), False
        self._deepstack: Deepstack | None = None
        self._mrope = uses_mrope(self.decoder)
        devices = {parameter.device for parameter in self.decoder.layers.parameters()}
        self._plain = decode_step.is_plain(self.decoder, layers_on_one_device=len(devices) == 1)
        self._states: WeakKeyDictionary[Cache, CacheState] = WeakKeyDictionary()
        self._steps = decode_step.DecodeSteps(self.decoder, self.method)
        self._pass: Forward | None = None
        self._probes: dict[int, AttentionInputs] = {}
        self._handles: list[Any] = []
        self._pass_handles: list[Any] = []

    # -- attaching ---------------------------------------------------------------------------------------------

    def __enter__(self) -> TokenReducer:
        for hook in self.decoder._forward_pre_hooks.values():
            if isinstance(getattr(hook, "__self__", None), TokenReducer):
                raise UnsupportedModelError("this model's tokens are already being reduced; leave that context first")
        self._handles += [
            *self._inputs.attach(),
            self.decoder.register_forward_pre_hook(self._before_decoder, with_kwargs=True),
            self.decoder.register_forward_hook(self._after_decoder, always_call=True),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        self._end_pass()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    # -- what the engine tells and asks ------------------------------------------------------------------------

    def expect(self, spans: Sequence[VideoSpan], *, unpadded: bool = False, deepstack: Deepstack | None = None) -> None:
        """Where the videos of the next prefills are; ``unpadded`` promises that no row has padding, which spares a
        look at the mask on the device; ``deepstack`` is what the decoder adds, where embeddings are all it is given.
        From now on the positions of all passes that continue a cache are made here, whatever they are called with."""
        self._spans, self._unpadded, self._deepstack = tuple(spans), unpadded, deepstack
        self._expecting = True

    @property
    def edits_cache(self) -> bool:
        """True if decode steps change the KV cache, so that a shared prefix must be copied for each question."""
        return bool(self._cache_stages)

    def state_of(self, cache: Cache) -> CacheState:
        """What is known about ``cache``, which must have been filled inside this context."""
        return self._states[cache]

    def adopt(self, cache: Cache, state: CacheState) -> None:
        """Continue from ``cache``, filled elsewhere; the next forward pass belongs to the prompt."""
        self._states[cache] = replace(state, in_prompt=True)

    # -- hooks -------------------------------------------------------------------------------------------------

    def _before_decoder(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if args:
            raise UnsupportedModelError("the decoder was called with positional arguments; name them")
        self._given = self._inputs.take(kwargs)
        kwargs = self._normalise(decoder, kwargs)
        cache, embeds = kwargs[CACHE], kwargs["inputs_embeds"]
        past = cache.get_seq_length() if cache is not None else 0
        state = self._states.get(cache) if cache is not None else None
        if state is not None and past > 0 and embeds.shape[1] == 1 and self._plain and self._steps.covers(state):
            return (), self._decode_step(kwargs, cache, state)
        spans = self._find_spans(kwargs, past if state is None or not isinstance(state.full, int) else state.full)
        if past == 0:
            self.report.prefills += 1
        if past == 0 and self._deepstack is not None:
            kwargs.update(self._deepstack.inputs(*embeds.shape[:2]))
        if state is None and not spans and self.method is not None:
            return (), kwargs  # text only, in a cache that was never reduced: nothing to do
        check_cache(cache)
        self._check_inputs(kwargs, spans)
        if state is None:
            state = CacheState.of_unreduced(kwargs.get("attention_mask"), past, embeds.device)
        self._pass = run = self._begin(kwargs, state, spans)
        added = added_layers(kwargs)
        if run.videos and any(stage.layer < added for stage in self._stages):
            additions, kwargs = Additions.take(kwargs)
            self._pass_handles += additions.hook(run, self.decoder.layers[:added])
        self._edit_cache(run, 0)
        if run.videos and Stage(0) in self._stages:
            embeds = self._reduce(run, embeds, Stage(0))
        mask, positions = run.start(embeds)
        self._hook_layers(run)
        return (), {**kwargs, "inputs_embeds": embeds, "attention_mask": mask, "position_ids": positions}

    def _before_layer(
        self, index: int, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        run = self._pass
        assert run is not None
        hidden = args[0] if args else kwargs["hidden_states"]
        if index > 0:
            self._edit_cache(run, index)
        if run.videos and index > 0 and Stage(index) in self._stages:
            hidden = self._reduce(run, hidden, Stage(index))
        if run.videos and Stage(index, "attention") in self._stages:
            hidden = self._reduce_attention_input(run, layer, hidden, Stage(index, "attention"))
        kwargs = {**kwargs, **run.layer_kwargs(index, hidden)}
        if args:
            return (hidden, *args[1:]), kwargs
        return (), {**kwargs, "hidden_states": hidden}

    def _after_decoder(self, _: nn.Module, __: object, output: object) -> None:
        run = self._pass
        self._end_pass()
        if run is None or output is None:
            return
        if run.videos:
            self.report.add_prefill(run, self._stopwatch, len(self.decoder.layers))
        if self.edits_cache and run.state.videos and run.state.decodes:
            self._count_kv(run)
        if run.cache is not None:
            state = run.after()
            if run.videos and self.edits_cache:
                entries = [range(v.pieces[0][0], sum(v.pieces[-1])) for v in run.videos]
                notes = [(v.scratch, e, v.span.length) for v, e in zip(run.videos, entries, strict=True)]
                state = replace(state, videos=tuple(notes))
            self._states[run.cache] = state
            if self._plain:
                self._steps.prepare(run.cache, state, output[0])  # type: ignore[index]

    def _end_pass(self) -> None:
        self._pass = None
        for handle in self._pass_handles:
            handle.remove()
        for probe in self._probes.values():
            probe.remove()
        self._pass_handles.clear()
        self._probes.clear()

    # -- one forward pass --------------------------------------------------------------------------------------

    def _normalise(self, decoder: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Make embeddings and cache explicit, as the decoder itself would."""
        kwargs = dict(kwargs)
        if kwargs.get("inputs_embeds") is None:
            kwargs["inputs_embeds"] = decoder.embed_tokens(kwargs.pop("input_ids"))
        use_cache = kwargs.get("use_cache")
        given = kwargs.pop("past_key_values", None)  # transformers 5.24 takes this name, too
        kwargs[CACHE] = kwargs.get(CACHE) if given is None else given
        if kwargs[CACHE] is None and (decoder.config.use_cache if use_cache is None else use_cache):
            kwargs[CACHE] = DynamicCache(config=decoder.config)
        return kwargs

    def _check_inputs(self, kwargs: dict[str, Any], spans: Sequence[VideoSpan]) -> None:
        """Refuse what a reduced sequence cannot honour."""
        mask = kwargs.get("attention_mask")
        if mask is not None and (not isinstance(mask, torch.Tensor) or mask.ndim != 2):
            raise UnsupportedModelError("reduced tokens need a 2-D attention_mask [B, L] (1 = real token) or none")
        if spans and self._given.chosen_logits:
            raise UnsupportedModelError(
                "logits_to_keep names places of the full sequence, of which tokens are taken out; give a number (the "
                "logits of that many last tokens) instead of a tensor"
            )

    def _find_spans(self, kwargs: dict[str, Any], past: int) -> Sequence[VideoSpan]:
        embeds = kwargs["inputs_embeds"]
        length = embeds.shape[1]
        if self.method is None or (past > 0 and length == 1):  # a decode step: spares a look at the device
            return ()
        if self._spans is not None:
            return expand_spans(self._spans, embeds, trusted=self._expecting) if past == 0 else ()
        if self._given.input_ids is None and (past > 0 or length == 1):
            return ()
        return self._inputs.find_spans(self._given.input_ids, kwargs.get("position_ids"), kwargs[CACHE], past)

    def _begin(self, kwargs: dict[str, Any], state: CacheState, spans: Sequence[VideoSpan]) -> Forward:
        embeds, given = kwargs["inputs_embeds"], kwargs.get("position_ids")
        rows, length = embeds.shape[:2]
        mask = None if self._unpadded and length > 1 else kwargs.get("attention_mask")
        if mask is not None:
            mask = mask[:, -length:].to(embeds.device, torch.bool)
            if (length > 1 and bool(mask.all())) or (length == 1 and not state.padded):
                mask = None
        own, shape, device = self._given.positions and not self._expecting, (rows, length), embeds.device
        if self._mrope:
            positions = mrope_positions_of(given, own, state, mask, shape, device)
        else:
            keeps = self.method is None or self.method.positions == "keep"
            positions = linear_positions_of(given if own else None, keeps, state, mask, shape, device)
        padding = [0] * rows if mask is None else (~mask).sum(-1).tolist()
        if spans and mask is not None and bool((mask[:, :-1] & ~mask[:, 1:]).any()):
            raise UnsupportedModelError("reduced batches need padding on the left (tokenizer.padding_side='left')")
        check_spans(spans, length, rows)
        videos = [VideoTokens.of(span, padding[span.row], embeds, head_dim(self.decoder)) for span in spans]
        run = Forward(
            decoder=self.decoder,
            method=self.method,
            state=state,
            cache=kwargs[CACHE],
            rows=rows,
            length=length,
            mask=mask,
            positions=positions,
            videos=videos,
            began=self._stopwatch.mark(),
            batch=Batch(embeds[:, :0], None, mask, padding),
            events=[[] for _ in videos],
        )
        if self.method is not None and (videos or state.in_prompt) and not (state.decodes and length == 1):
            run.visible = self._visible(run)
        return run

    def _visible(self, run: Forward) -> Any:
        assert self.method is not None
        padded = run.mask is not None or run.state.padded
        prompt = 0 if padded else int(run.state.full) + run.length
        visible = self.method.visible(prompt)
        if visible is None:
            return None
        if not prompt:
            raise UnsupportedModelError(f"{self.method.name} counts places in the sequence: no padded batches")
        if "flash" in self.decoder.config._attn_implementation:
            raise UnsupportedModelError(f"{self.method.name} needs a mask; use attn_implementation=sdpa")
        layers = len(self.decoder.layers)
        last = torch.tensor(prompt - 1)
        seen = int(torch.as_tensor(visible(torch.tensor(0), torch.tensor(0), last, torch.arange(prompt))).sum())
        self.report.count_kv(layers * seen, layers * prompt)
        return visible

    def _hook_layers(self, run: Forward) -> None:
        """Hooks of this pass on the layers that need other inputs than the decoder gives them."""
        firsts = [track.first for track in run.state.tracks[1:]] + sorted(self._cache_stages - {0})
        if run.videos:
            firsts += [max(1, s.layer) if s.site == "layer" else s.layer for s in self._stages if s != Stage(0)]
        if run.visible is not None or run.attend or (run.reductions and run.keeps_positions and not self._mrope):
            firsts.append(0)
        if not firsts:
            return
        layers = self.decoder.layers
        reads = self.method is not None and self.method.reads == "attention"
        for index in range(min(firsts), len(layers)):
            hook = partial(self._before_layer, index)
            self._pass_handles.append(layers[index].register_forward_pre_hook(hook, prepend=True, with_kwargs=True))
        for stage in self._stages if run.videos else ():
            if stage.site == "mlp":
                self._pass_handles += hook_mlp(layers[stage.layer], stage, partial(self._reduce, run, stage=stage))
            asked = stage.layer if stage.site == "mlp" else stage.layer - 1
            if reads and asked >= 0 and asked not in self._probes:
                self._probes[asked] = AttentionInputs(layers[asked])
        if run.cache is not None and run.state.videos and run.state.decodes:
            for layer in self._cache_stages - {0}:
                self._probes[layer - 1] = AttentionInputs(layers[layer - 1])

    # -- stages ------------------------------------------------------------------------------------------------

    def _reduce(self, run: Forward, hidden: torch.Tensor, stage: Stage) -> torch.Tensor:
        """Hand every video to the method; returns the hidden states that go on."""
        batch = replace(run.batch, hidden=hidden)
        method, began = self.method, self._stopwatch.mark()
        assert method is not None
        asked = stage.layer if stage.site == "mlp" else stage.layer - 1
        cache = run.cache
        before = [len(video.tokens.cells) for video in run.videos]

        def reduce(video: VideoTokens, features: torch.Tensor, row: int) -> Kept | None:
            probe = VideoProbe(
                len(self.decoder.layers), self._probes.get(asked), cache, row, batch.padding[row], tuple(video.pieces)
            )
            video.scratch["site"] = stage.site
            return method.reduce(replace(video.tokens, features=features), stage.layer, probe, video.scratch)

        after, results = reduce_batch(batch, run.videos, reduce)
        ended = self._stopwatch.mark()
        for number, kept in enumerate(results):
            if kept is not None:
                event = StageEvent(stage.layer, stage.site, before[number], len(kept), began, ended)
                run.events[number].append(event)
        if after is not batch:
            run.batch = replace(after, hidden=after.hidden[:, :0])
            run.reductions += 1
        return after.hidden

    def _reduce_attention_input(self, run: Forward, layer: Any, hidden: torch.Tensor, stage: Stage) -> torch.Tensor:
        """The method sees the normed input of attention. What it returns feeds attention, while the residual stream
        goes on with the survivors' own rows."""
        before = run.batch
        run.batch = replace(before, index=None)
        reduced = self._reduce(run, layer.input_layernorm(hidden), stage)
        rows = run.batch.index
        if rows is None:
            run.batch = before
            return hidden
        if before.index is not None:
            run.batch = replace(run.batch, index=before.index.gather(1, rows))
        self._pass_handles.append(layer.input_layernorm.register_forward_hook(lambda *_: reduced))
        return hidden.gather(1, rows[..., None].expand(-1, -1, hidden.shape[-1]))

    # -- decode steps ------------------------------------------------------------------------------------------

    def _decode_step(self, kwargs: dict[str, Any], cache: Cache, state: CacheState) -> dict[str, Any]:
        """Arguments of the decoder for one token of sequences without padding."""
        self._check_inputs(kwargs, ())
        positions, hooks = self._steps.step(cache, state, kwargs["inputs_embeds"])
        if self._given.positions and not self._expecting:
            keeps = self.method is None or self.method.positions == "keep"
            positions = step_positions_of(kwargs["position_ids"], positions, int(state.full), self._mrope, keeps)
        for layer, hook in hooks:
            self._pass_handles.append(
                self.decoder.layers[layer].register_forward_pre_hook(hook, prepend=True, with_kwargs=True)
            )
        self._states[cache] = decode_step.advance(state)
        return {**kwargs, "attention_mask": None, "position_ids": positions}

    def _edit_cache(self, run: Forward, layer: int) -> None:
        """Let the method edit the cache in front of ``layer`` of a decode step."""
        state = run.state
        if layer not in self._cache_stages or not state.videos or not state.decodes or run.cache is None:
            return
        assert self.method is not None
        if run.rows > 1 or run.length > 1 or len(state.videos) > 1 or state.padded:
            raise UnsupportedModelError(
                f"{self.method.name} edits the KV cache at every decode step: one sequence with one video at a time "
                "(batch_size=1, num_beams=1), token by token"
            )
        view = StepView(self.decoder, run.cache, state, layer, self._probes.get(layer - 1), run.attend)
        self.method.edit_cache(view, state.videos[0][0])

    def _count_kv(self, run: Forward) -> None:
        """Count what this decode step saw of the KV cache, and what there would be without edits."""
        for layer in range(len(self.decoder.layers)):
            entries = run.cache.get_seq_length(layer) if run.cache is not None else 0
            _, seen = run.attend.get(layer, (None, entries))
            self.report.count_kv(seen, int(run.state.track_of(layer).seen) + 1)
