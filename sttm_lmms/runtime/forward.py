"""One forward pass in which layers get fewer tokens than the pass began with.

Hooks on the layers hand the visual tokens to the method at each of its stages, and give every layer
that follows the hidden states, rotary embeddings and mask of what is left. They are there during
this pass alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch

from sttm_lmms.errors import UnsupportedModelError
from sttm_lmms.methods.base import Method, Stage
from sttm_lmms.runtime.decode_step import StepView
from sttm_lmms.runtime.deepstack import added_layers, hook_deepstack, take_deepstack
from sttm_lmms.runtime.layer_inputs import LayerInputs
from sttm_lmms.runtime.probe import AttentionInputs, hook_mlp
from sttm_lmms.runtime.report import Report, StageEvent
from sttm_lmms.runtime.timing import Stopwatch
from sttm_lmms.runtime.videos import VideoTokens, reduce_videos


@dataclass(frozen=True)
class Plan:
    """Where a method acts in one decoder.

    Attributes:
        method: None for the baseline.
        stages: where it reduces tokens.
        edits: layers in front of which it edits the KV cache at decode steps.
    """

    method: Method | None
    stages: frozenset[Stage]
    edits: frozenset[int]

    @classmethod
    def of(cls, method: Method | None, layers: int) -> Plan:
        """The plan for a decoder of that many layers.

        Raises:
            ValueError: the method acts at a layer that is not there.
        """
        if method is None:
            return cls(None, frozenset(), frozenset())
        stages = [stage if isinstance(stage, Stage) else Stage(stage) for stage in method.stages(layers)]
        edits = method.cache_stages(layers)
        for layer in [stage.layer for stage in stages] + list(edits):
            if not 0 <= layer < layers:
                names = [field.name for field in fields(method) if getattr(method, field.name) is layer]
                raise ValueError(
                    f"{method.name}: {names[0] if names else 'layer'}={layer} is out of range; this model has layers "
                    f"0..{layers - 1}"
                )
        return cls(method, frozenset(stages), frozenset(edits))

    @property
    def needs_end_of_prompt(self) -> bool:
        """True if what the method does depends on which token is the last one of the prompt."""
        positions = getattr(self.method, "decode_positions", "continue")
        return self.reads_attention or bool(self.edits) or positions == "reference"

    @property
    def reads_attention(self) -> bool:
        """True if the method asks for attention weights at its stages."""
        return self.method is not None and self.method.reads == "attention"


class Forward:
    """A prefill, or a pass that continues a cache.

    Args:
        plan: where the method acts.
        inputs: of the layers.
        videos: the videos among the new tokens.
        report: is told what happens.
        stopwatch: when it happens.
    """

    def __init__(
        self,
        plan: Plan,
        inputs: LayerInputs,
        videos: Sequence[VideoTokens],
        report: Report,
        stopwatch: Stopwatch,
    ) -> None:
        self.inputs, self.videos = inputs, videos
        self._began = stopwatch.mark()
        self._events: list[list[StageEvent]] = [[] for _ in videos]
        self._decoder, self._layers, self._plan = inputs.decoder, inputs.decoder.layers, plan
        self._stages = plan.stages if videos else frozenset()
        self._report, self._stopwatch = report, stopwatch
        self._edits = self._check_edits()
        self._held = inputs.held(len(self._layers) - 1)
        self._attention: dict[int, AttentionInputs] = {}
        self._handles: list[Any] = []

    def start(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The decoder's own arguments; hooks do the rest."""
        hidden, inputs = kwargs["inputs_embeds"], self.inputs
        added = added_layers(kwargs)
        if any(stage.layer < added for stage in self._stages):
            # The decoder would add full-length features to hidden states that are shorter by then.
            deepstack, kwargs = take_deepstack(kwargs)
            self._handles += hook_deepstack(deepstack, inputs, self.videos, self._layers[:added])
        # In front of layer 0 no hook is needed: its input is the decoder's own argument.
        if 0 in self._edits:
            self._edit_cache(0)
        if Stage(0) in self._stages:
            hidden = self._reduce(hidden, Stage(0))
        if inputs.in_prompt and self._plan.method is not None:
            inputs.visible = self._visible(self._plan.method)
        mask, positions = inputs.of_decoder(hidden)
        self._hook_layers()
        return {**kwargs, "inputs_embeds": hidden, "attention_mask": mask, "position_ids": positions}

    def finish(self) -> None:
        """Write down what the pass did."""
        inputs, sequence = self.inputs, self.inputs.sequence
        if self.videos:
            self._report.add_prefill(self.videos, self._events, self._began, self._stopwatch, len(self._layers))
        if self._edits:
            self._count_kv()
        inputs.note_in_sequence()
        if self.videos and not inputs.reductions:
            sequence.merged.pop()  # nothing was reduced, so the cache can be cut anywhere
        if self.videos and self._plan.edits:
            sequence.videos += tuple(video.cached(self._held) for video in self.videos)
        if self._edits:  # what was dropped or turned cannot be brought back
            sequence.merged = [(0, inputs.past + inputs.length)]

    def remove(self) -> None:
        """Take all hooks off."""
        for handle in self._handles:
            handle.remove()
        for attention in self._attention.values():
            attention.remove()
        self._handles.clear()
        self._attention.clear()

    # -- hooks -------------------------------------------------------------------------------------------------

    def _hook_layers(self) -> None:
        """Hooks on the layers that need other inputs than the decoder gives them, and where the
        method acts."""
        # From the first layer whose inputs differ from those of the decoder, all layers are hooked:
        # the decoder computes one mask and one rotary table, and hands them to every layer.
        firsts = [group.first for group in self.inputs.sequence.groups[1:]] + sorted(self._edits - {0})
        firsts += [max(1, s.layer) if s.site == "layer" else s.layer for s in self._stages if s != Stage(0)]
        if self.inputs.changes_layer_0:
            firsts.append(0)
        for index in range(min(firsts, default=len(self._layers)), len(self._layers)):
            hook = partial(self._before_layer, index)
            # Before other hooks, which then see what the layer really gets.
            self._handles.append(self._layers[index].register_forward_pre_hook(hook, prepend=True, with_kwargs=True))
        for stage in self._stages:
            if stage.site == "mlp":
                self._handles += hook_mlp(self._layers[stage.layer], stage, partial(self._reduce, stage=stage))
            if self._plan.reads_attention:
                self._read_attention(_attention_before(stage))
        for layer in self._edits:
            self._read_attention(layer - 1)

    def _read_attention(self, layer: int) -> None:
        # Two stages may ask for the attention of one layer; layer 0 has none before it.
        if layer >= 0 and layer not in self._attention:
            self._attention[layer] = AttentionInputs(self._layers[layer])

    def _before_layer(
        self, index: int, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        hidden = args[0] if args else kwargs["hidden_states"]
        if index > 0:  # at layer 0 the decoder's own arguments have been changed already
            if index in self._edits:
                self._edit_cache(index)
            if Stage(index) in self._stages:
                hidden = self._reduce(hidden, Stage(index))
        if Stage(index, "attention") in self._stages:
            hidden = self._reduce_attention_input(layer, hidden, Stage(index, "attention"))
        kwargs = {**kwargs, **self.inputs.of_layer(index, hidden)}
        if args:
            return (hidden, *args[1:]), kwargs
        return (), {**kwargs, "hidden_states": hidden}

    # -- stages ------------------------------------------------------------------------------------------------

    def _reduce(self, hidden: torch.Tensor, stage: Stage) -> torch.Tensor:
        """Hand every video to the method; returns the hidden states that go on."""
        method, began = self._plan.method, self._stopwatch.mark()
        assert method is not None
        before = [len(video.tokens.cells) for video in self.videos]
        batch = self.inputs.batch
        hidden, after, results = reduce_videos(
            method,
            stage,
            hidden,
            batch,
            self.videos,
            layers=len(self._layers),
            attention=self._attention.get(_attention_before(stage)),
            cache=self.inputs.cache,
        )
        ended = self._stopwatch.mark()
        for events, count, kept in zip(self._events, before, results, strict=True):
            if kept is not None:
                events.append(StageEvent(stage.layer, stage.site, count, len(kept), began, ended))
        if after is not batch:
            self.inputs.batch = after
            self.inputs.reductions += 1
        return hidden

    def _reduce_attention_input(self, layer: Any, hidden: torch.Tensor, stage: Stage) -> torch.Tensor:
        """The method sees the normed input of attention. What it returns feeds attention, while the
        residual stream goes on with the survivors' own rows."""
        inputs, before = self.inputs, self.inputs.batch
        # An index of this stage alone, counted in the tokens that entered the layer: it picks rows
        # of the residual stream.
        inputs.batch = replace(before, index=None)
        reduced = self._reduce(layer.input_layernorm(hidden), stage)
        rows = inputs.batch.index
        if rows is None:
            inputs.batch = before
            return hidden
        if before.index is not None:
            inputs.batch = replace(inputs.batch, index=before.index.gather(1, rows))
        # The layer norms its input again; what the method made of it takes the place of that.
        self._handles.append(layer.input_layernorm.register_forward_hook(lambda *_: reduced))
        return hidden.gather(1, rows[..., None].expand(-1, -1, hidden.shape[-1]))

    def _visible(self, method: Method) -> Any:
        """The method's own mask of the prompt, None without one."""
        inputs = self.inputs
        padded = inputs.mask is not None or inputs.sequence.padded
        prompt = 0 if padded else inputs.past + inputs.length
        visible = method.visible(prompt)
        if visible is None:
            return None
        if not prompt:
            raise UnsupportedModelError(f"{method.name} counts places in the sequence: no padded batches")
        if "flash" in self._decoder.config._attn_implementation:
            raise UnsupportedModelError(f"{method.name} needs a mask; use attn_implementation=sdpa")
        # What the last token of the prompt sees stands for what decode steps see.
        last = torch.tensor(prompt - 1)
        seen = int(torch.as_tensor(visible(torch.tensor(0), torch.tensor(0), last, torch.arange(prompt))).sum())
        self._report.count_kv(len(self._layers) * seen, len(self._layers) * prompt)
        return visible

    # -- methods that edit the KV cache ------------------------------------------------------------------------

    def _check_edits(self) -> frozenset[int]:
        """Layers in front of which the method edits the cache in this pass."""
        inputs, videos = self.inputs, self.inputs.sequence.videos
        if not videos or inputs.in_prompt or inputs.cache is None or not self._plan.edits:
            return frozenset()
        assert self._plan.method is not None
        if inputs.rows > 1 or inputs.length > 1 or len(videos) > 1 or inputs.sequence.padded or self.videos:
            raise UnsupportedModelError(
                f"{self._plan.method.name} edits the KV cache at every decode step: one sequence with one video at a "
                "time (batch_size=1, num_beams=1), token by token"
            )
        return self._plan.edits

    def _edit_cache(self, layer: int) -> None:
        """Let the method edit the cache in front of ``layer``."""
        inputs, method = self.inputs, self._plan.method
        assert inputs.cache is not None
        assert method is not None
        attention = self._attention.get(layer - 1)
        view = StepView(self._decoder, inputs.cache, layer, attention, inputs.attend)
        method.edit_cache(view, inputs.sequence.videos[0].state)

    def _count_kv(self) -> None:
        """Count what this decode step saw of the KV cache, and what there would be without
        edits."""
        cache = self.inputs.cache
        assert cache is not None
        for layer in range(len(self._layers)):
            held, dropped = cache.held(layer), sum(count for start, count in cache.removals[layer] if start < 0)
            _, seen = self.inputs.attend.get(layer, (None, held))
            self._report.count_kv(seen, held + dropped)


def _attention_before(stage: Stage) -> int:
    """The layer whose attention a method may ask for at ``stage``; -1 where there is none."""
    return stage.layer if stage.site == "mlp" else stage.layer - 1
