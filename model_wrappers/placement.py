"""Where the model of this process runs, and in which precision."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from sttm_lmms.model_wrappers.arguments import WrapperArguments


@dataclass(frozen=True)
class Placement:
    """This process among its peers.

    Attributes:
        device: where inputs go.
        device_map: for ``from_pretrained``: one device, or what the user asked for.
        dtype: of the weights.
        rank, world_size: this process and all processes.
    """

    device: torch.device
    device_map: Any
    dtype: torch.dtype
    rank: int
    world_size: int


def place(arguments: WrapperArguments) -> Placement:
    """CUDA, MPS or CPU, whichever is there; the process' own device under accelerate or torchrun.

    Raises:
        ValueError: several processes were told to use the same device, or a device map over all of them.
    """
    state = PartialState()
    device = torch.device(arguments.device) if arguments.device else state.device
    if state.num_processes > 1:
        if arguments.device_map is not None:
            raise ValueError(
                f"device_map={arguments.device_map!r} spreads one model over the devices, but {state.num_processes} "
                "processes were started; start one process, or leave out device_map"
            )
        if device.type == "cuda" and arguments.device not in (None, "cuda"):
            raise ValueError(f"device={arguments.device!r} is one device for {state.num_processes} processes; say cuda")
        device = state.device if device.type == state.device.type else device
    return Placement(
        device=device,
        device_map=arguments.device_map or {"": str(device)},
        dtype=_dtype(arguments.dtype, device),
        rank=state.process_index,
        world_size=state.num_processes,
    )


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.float16 if device.type == "mps" else torch.float32


def make_reproducible(seed: int = 0) -> None:
    """Fix every seed and ask for deterministic kernels; an operation that has none warns. Lasts for the process."""
    from transformers import set_seed

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when the first CUDA context is made
    set_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
