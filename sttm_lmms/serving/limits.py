"""What vLLM cannot be given, each with the reason and the way out; asked before anything is
loaded."""

from __future__ import annotations

from pathlib import Path

import torch

from sttm_lmms.errors import STTMError
from sttm_lmms.families import layout_of
from sttm_lmms.families.base import Family
from sttm_lmms.families.checkpoint import read_json, resolve_checkpoint
from sttm_lmms.families.llava import LlavaFamily
from sttm_lmms.methods.base import Method, Stage
from sttm_lmms.serving.vllm_plugin import ARCHITECTURES

_ANY_DEPTH = 1000  # more layers than any decoder: a method that acts in front of layer 0 alone does so at any depth


def served_family(checkpoint: str | Path, revision: str | None = None) -> tuple[Family, bool]:
    """The family of a checkpoint that vLLM can serve, and whether vLLM knows its architecture, so
    that our plugin does; of a hub id only ``config.json`` is downloaded.

    Raises:
        CheckpointError: the checkpoint cannot be had.
        STTMError: its family cannot be served.
    """
    folder = resolve_checkpoint(checkpoint, revision=revision, files=["config.json"])
    found, _ = layout_of(folder)
    known = any(name in ARCHITECTURES for name in read_json(folder / "config.json")["architectures"])
    # LLaVA-Video has vLLM's architecture once it is converted, but newlines and a time instruction
    # that vLLM's class does not write.
    if isinstance(found, LlavaFamily):
        return found, known and found.name == "llava_onevision"
    if not known:
        raise STTMError(f"{checkpoint}: {found.name} is not served by vLLM here; use --model sttm_{found.name}")
    return found, True


def check_served(method: Method | None, family: str = "llava_video") -> None:
    """Raise ``ValueError`` unless all that a method does happens to the decoder's input."""
    if method is None:
        return
    elsewhere = f"or use --model sttm_{family}"
    name = method.name
    if method.reads == "attention":
        raise ValueError(
            f"method={name} reads attention inside of the decoder, which vLLM does not hand out: take a method that "
            f"reads features, such as sttm, {elsewhere}"
        )
    if method.cache_stages(_ANY_DEPTH) or method.visible(_ANY_DEPTH) is not None:
        raise ValueError(f"method={name} edits the KV cache or the mask, which is vLLM's own here: {elsewhere[3:]}")
    stages = [stage if isinstance(stage, Stage) else Stage(stage) for stage in method.stages(_ANY_DEPTH)]
    if stages != [Stage(0)]:
        layer = getattr(method, "start_layer", None)
        what = f"method={name}" if layer in (None, 0) else f"start_layer={layer}"
        hint = elsewhere[3:] if layer in (None, 0) else f"say start_layer=0, {elsewhere}"
        raise ValueError(
            f"{what} acts inside of the decoder, but vLLM gets merged tokens as its input, in front of layer 0 (the "
            f"published setting of the 72B model): {hint}"
        )
    if method.positions == "keep":
        raise ValueError(f"method={name} keeps rotary positions, but vLLM numbers its input from 0 on: {elsewhere[3:]}")
    if getattr(method, "decode_positions", "continue") != "continue":
        raise ValueError(
            "decode_positions=reference lets generated tokens go on from the unreduced length, but vLLM goes on from "
            f"the prompt's own: say decode_positions=continue, {elsewhere}"
        )


def untested_features(version: str, dtype: torch.dtype, device: torch.device, tensor_parallel_size: int) -> list[str]:
    """Which features of a run with this vLLM no test has covered."""
    found = []
    if not version.startswith("0.32."):
        found.append(f"vLLM {version}")
    if device.type != "cpu":
        found.append(f"device {device.type}")
    if dtype != torch.float32:
        found.append(f"{str(dtype).removeprefix('torch.')}, where near ties may fall otherwise than in transformers")
    if tensor_parallel_size > 1:
        found.append(f"tensor_parallel_size={tensor_parallel_size}")
    return found
