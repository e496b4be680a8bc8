"""Where the model of this process runs, and in which precision."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from loguru import logger

from sttm_lmms.families.requirements import check_attention, check_device
from sttm_lmms.model_wrappers.arguments import WrapperArguments

_LAUNCHER = (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))


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

    Rank and number of processes are what the launcher says, as in lmms-eval: accelerate's own state holds every CPU
    process for the only one unless it was told to use the CPU.

    Raises:
        STTMError: the device is not in this machine, or flash attention cannot run on it.
        ValueError: several processes were told to use the same device, or a device map over all of them.
    """
    rank, world_size, local_rank = (int(os.environ.get(name, default)) for name, default in _LAUNCHER)
    if world_size > 1 and arguments.device_map is not None:
        raise ValueError(
            f"device_map={arguments.device_map!r} spreads one model over the devices, but {world_size} processes were "
            "started; start one process, or leave out device_map"
        )
    check_device(arguments.device)
    device = torch.device(arguments.device or _best_device_type())
    check_attention(arguments.attn_implementation, device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", local_rank % max(1, torch.cuda.device_count()))
    elif device.type == "cuda" and world_size > 1:
        raise ValueError(f"device={arguments.device!r} is one device for {world_size} processes; say device=cuda")
    return Placement(
        device=device,
        device_map=arguments.device_map or {"": str(device)},
        dtype=_dtype(arguments.dtype, device),
        rank=rank,
        world_size=world_size,
    )


def _best_device_type() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        # Emulated bfloat16 (V100, T4) counts as support unless one says so, and is many times slower than float16.
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16
        logger.warning("{} cannot compute in bfloat16: float16 is used; dtype=bfloat16 or float32 overrides it", device)
        return torch.float16
    return torch.float16 if device.type == "mps" else torch.float32


def make_reproducible(seed: int = 0) -> None:
    """Fix every seed and ask for deterministic kernels; an operation that has none warns. Lasts for the process."""
    from transformers import set_seed

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when the first CUDA context is made
    set_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
