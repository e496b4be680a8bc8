"""``lmms-eval --model sttm_vllm``: answers of vLLM, with our plugin in it where vLLM knows the
checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from loguru import logger
from pydantic import Field
from torch import nn

from sttm_lmms.families import get_family
from sttm_lmms.families.checkpoint import read_headers, resolve_checkpoint
from sttm_lmms.families.placement import Placement
from sttm_lmms.model_wrappers.arguments import (
    AtLeastOne,
    WrapperArguments,
    method_hints,
    parse_as,
    refused_arguments,
)
from sttm_lmms.model_wrappers.base import STTMWrapper
from sttm_lmms.model_wrappers.load import load
from sttm_lmms.model_wrappers.settings import RunSettings, TaskSettings
from sttm_lmms.runtime import Engine
from sttm_lmms.serving.connection import check_vllm, open_vllm
from sttm_lmms.serving.decoder_cache import cached_decoder
from sttm_lmms.serving.embeds import EmbedsEngine
from sttm_lmms.serving.engine import VLLMEngine
from sttm_lmms.serving.frames import FramesEngine, plugin_settings
from sttm_lmms.serving.limits import check_served, served_family, untested_features
from sttm_lmms.serving.vllm_plugin.reduction import check_reservable

_REFUSED = ("attn_implementation", "device_map", "host_cache_gb", "load_in_4bit")


@dataclass(frozen=True)
class VLLMArguments(WrapperArguments):
    """Arguments of this wrapper on top of those of all.

    Attributes:
        family: only for a converted checkpoint whose files do not say which of the two it is.
        tensor_parallel_size: GPUs that share the decoder; the vision tower runs on the first one.
        gpu_memory_utilization: share of a GPU's memory (without one: of the host's) that vLLM
            takes; the rest is the vision tower's. By default 0.85, on a CPU 0.15.
        max_model_len: longest prompt and answer together; by default the checkpoint's.
        max_num_seqs: answers that vLLM generates at the same time; by default its own choice.
        enforce_eager: no CUDA graphs and no compilation, which starts faster and runs slower.
        queue_gb: host memory for prompts that are handed to vLLM in one call.
        decoder_cache: folder for the exported decoders of checkpoints that vLLM does not know; by
            default ``sttm_lmms/decoders`` in the hub's folder.
    """

    family: Literal["llava_video", "llava_onevision"] | None = None
    tensor_parallel_size: AtLeastOne = 1
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    max_model_len: AtLeastOne | None = None
    max_num_seqs: AtLeastOne | None = None
    enforce_eager: bool = False
    queue_gb: Annotated[float, Field(gt=0)] = 2.0
    decoder_cache: Path | None = None


class VLLM(STTMWrapper):
    """Frames and prompts as in the other wrappers; answers of vLLM.

    Where vLLM knows the checkpoint, it sees and merges, too (``serving/frames.py``); else it gets
    merged embeddings (``serving/embeds.py``).

    Raises:
        STTMError: the model family, the machine or the installed vLLM cannot do it; before any
            weights are loaded.
    """

    family = "llava_video"
    opened_at_once = 64  # vLLM generates many answers at a time
    arguments: VLLMArguments

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> RunSettings:
        arguments = parse_as(VLLMArguments, values, refused=_REFUSED)
        family, inside = _route(arguments)
        refused = refused_arguments(get_family(family))
        arguments = parse_as(VLLMArguments, values, refused=(*_REFUSED, *refused))
        arguments = _inside_vllm(arguments, family) if inside else _merging_first(arguments)
        run = RunSettings(arguments, family)
        _check_method(run.default.config, family, inside)
        check_vllm()
        return run

    def _load(self, placement: Placement) -> tuple[nn.Module, Any]:
        if placement.world_size > 1:
            raise ValueError(
                f"{placement.world_size} processes were started, but vLLM starts its own: start one process, and give "
                "tensor_parallel_size=N to spread the decoder over N GPUs"
            )
        arguments = self.arguments
        checkpoint = resolve_checkpoint(arguments.pretrained, revision=arguments.revision)
        _, self._inside = _route(arguments)
        # Before vLLM, which measures how much memory is free when it starts, and takes it.
        parts = {"headers": read_headers(checkpoint)} if self._inside else {"with_decoder": False}
        model, processor = load(arguments, placement, self._family, **parts)
        if self._inside:
            settings = {"model": str(checkpoint), **plugin_settings(self.run_settings.default.config)}
        else:
            decoder = cached_decoder(checkpoint, arguments.decoder_cache)
            settings = {"model": str(decoder), "enable_prompt_embeds": True}
        self._llm = open_vllm({**settings, **self._llm_settings(placement)})
        untested = untested_features(
            self._llm.version, placement.dtype, placement.device, arguments.tensor_parallel_size
        )
        logger.info("vLLM {} with {}", self._llm.version, settings["model"])
        if untested:
            logger.warning(
                "vLLM was compared with our own engine on a CPU in float32; not with {}", "; ".join(untested)
            )
        return model, processor

    def _llm_settings(self, placement: Placement) -> dict[str, Any]:
        """Arguments of ``vllm.LLM``, the same for all checkpoints."""
        arguments = self.arguments
        usual = 0.15 if placement.device.type == "cpu" else 0.85
        given = {"max_model_len": arguments.max_model_len, "max_num_seqs": arguments.max_num_seqs}
        return {
            "dtype": str(placement.dtype).removeprefix("torch."),
            "tensor_parallel_size": arguments.tensor_parallel_size,
            "gpu_memory_utilization": arguments.gpu_memory_utilization or usual,
            "enforce_eager": arguments.enforce_eager,
            "enable_prefix_caching": arguments.reuse == "prefix",
            "seed": 0,
            **{name: value for name, value in given.items() if value is not None},
        }

    def _make_engine(self, config: Any, **settings: Any) -> Engine:
        del settings["host_cache_gb"]
        engine = FramesEngine if self._inside else EmbedsEngine
        return engine(self.model, self.processor, config, llm=self._llm, queue_gb=self.arguments.queue_gb, **settings)

    def _settings(self, task: str) -> TaskSettings:
        settings = super()._settings(task)
        _check_method(settings.config, self._family, self._inside)  # a preset has its settings only now
        return settings

    def _provenance(self, task: str) -> Any:
        return replace(super()._provenance(task), attention=f"vLLM {self._llm.version}")

    def clean(self) -> None:
        """As of all wrappers; vLLM is stopped."""
        engine, tokens = self._engine, self._responder.output_tokens
        assert isinstance(engine, VLLMEngine)
        if engine.prompt_tokens and self._seconds:
            logger.info(
                "vLLM: {:.2f} questions and {:.1f} new tokens a second, decoding, vision and merging included; {:.1%} "
                "of the prompts' tokens out of its prefix cache",
                len(engine.replies) / self._seconds,
                tokens / self._seconds,
                engine.cached_tokens / engine.prompt_tokens,
            )
        try:
            super().clean()
        finally:
            self._llm.close()


class SimpleVLLM(VLLM):
    """The same for tasks that chat models cannot run (``--force_simple``)."""

    is_simple = True


def _merging_first(arguments: Any) -> Any:
    """``start_layer=0`` where nobody says another, because vLLM leaves no choice; a preset says
    another."""
    settings = arguments.method_settings
    if arguments.preset or "start_layer" in settings or "start_layer" not in method_hints(arguments.method):
        return arguments
    return replace(arguments, method_settings={**settings, "start_layer": 0})


def _route(arguments: VLLMArguments) -> tuple[str, bool]:
    """Name of the family, and whether vLLM sees the frames itself."""
    served, known = served_family(arguments.pretrained, arguments.revision)
    return arguments.family or served.name, known and arguments.family in (None, served.name)


def _inside_vllm(arguments: VLLMArguments, family: str) -> VLLMArguments:
    """What our plugin needs: tokens joined to the exact count in front of layer 0, and one newline
    token where there is any.

    Raises:
        ValueError: an argument that has no meaning there.
    """
    for name, value in (("preset", arguments.preset), ("features", arguments.features)):
        if value is not None:
            raise ValueError(
                f"{name}={value} has no meaning here: vLLM sees the frames and reduces all videos alike; give "
                f"method and budget, or use --model sttm_{family}"
            )
    if get_family(family).newlines:
        if arguments.newline not in (None, "one_token"):
            raise ValueError(f"newline={arguments.newline}: vLLM writes one newline behind a video; newline=one_token")
        arguments = _with(arguments, newline="one_token")
    arguments = _merging_first(arguments)
    settings = arguments.method_settings
    if "floor" in settings or "floor" not in method_hints(arguments.method):
        return arguments
    return _with(arguments, method_settings={**settings, "floor": "join"})


def _with(arguments: VLLMArguments, **changes: Any) -> VLLMArguments:
    return replace(arguments, **changes)


def _check_method(method: Any, family: str, inside: bool) -> None:
    """Raise ``ValueError`` unless vLLM can be made to run a method."""
    if method is None:
        return
    if inside:
        check_reservable(method)
    if not inside or get_family(family).newlines:
        check_served(method, family)
