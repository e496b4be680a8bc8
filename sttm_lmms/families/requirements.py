"""What a machine has to have for a setting, asked before anything is downloaded or loaded."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

from sttm_lmms.errors import STTMError


def check_device(device: Any) -> None:
    """Raise ``STTMError`` if ``device`` (``"cuda:1"``, a ``torch.device``, or anything else) is not
    in this machine."""
    name = str(device)
    if name.startswith("mps") and not torch.backends.mps.is_available():
        raise STTMError("device=mps: torch sees no Apple GPU here; leave device out to run on what there is")
    if not name.startswith("cuda"):
        return
    if not torch.cuda.is_available():
        why = "this build of torch has no CUDA in it" if torch.version.cuda is None else "torch sees no GPU here"
        raise STTMError(f"device={name}: {why}; leave device out, say device=cpu, or see `sttm-lmms check`")
    index = torch.device(name).index or 0
    if index >= (count := torch.cuda.device_count()):
        raise STTMError(f"device={name}: this machine has {count} GPUs, cuda:0 to cuda:{count - 1}")


def check_attention(name: str | None, device: torch.device | None = None) -> None:
    """Raise ``STTMError`` if an attention implementation needs a package that is not there, or not
    that ``device``."""
    if name != "flash_attention_2":
        return
    # transformers can take the kernels of flash attention through the package `kernels`, too.
    if not (find_spec("flash_attn") or find_spec("kernels")):
        raise STTMError(
            "attn_implementation=flash_attention_2 needs the package flash-attn, which is not installed: "
            "pip install 'sttm-lmms[flash]', or leave attn_implementation out (sdpa gives the same answers)"
        )
    if device is not None and device.type != "cuda":
        raise STTMError(
            f"attn_implementation=flash_attention_2 needs a CUDA GPU, and this run is on {device}; leave "
            "attn_implementation out (sdpa gives the same answers)"
        )


def check_package(name: str, what: str) -> None:
    """Raise ``STTMError`` if a package that ``what`` needs is not there."""
    if not find_spec(name):
        raise STTMError(f"{what}, needs the package {name}, which is not installed: pip install {name}")


def check_quantization(load_in_4bit: bool) -> None:
    """Raise ``STTMError`` if four bits are asked for and their package is not there."""
    if load_in_4bit and not find_spec("bitsandbytes"):
        raise STTMError(
            "load_in_4bit=True needs the package bitsandbytes, which is not installed: "
            "pip install 'sttm-lmms[quantize]', or leave load_in_4bit out"
        )
