"""Where the model of this process runs, and in which precision."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any

import torch

from sttm_lmms.errors import unknown
from sttm_lmms.families.requirements import check_attention, check_device

DTYPES = ("auto", "float32", "bfloat16", "float16")
_LAUNCHER = (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))

log = logging.getLogger(__name__)


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


def place_model(
    device: str | None = None,
    dtype: str = "auto",
    *,
    device_map: str | None = None,
    attn_implementation: str | None = None,
) -> Placement:
    """CUDA, MPS or CPU, whichever is there; the process' own device under accelerate or torchrun.

    Rank and number of processes are what the launcher says, as in lmms-eval: accelerate's own state
    holds every CPU process for the only one unless it was told to use the CPU.

    Args:
        device: such as ``"cuda:1"``; None picks one.
        dtype: one of ``DTYPES``; ``auto`` is bfloat16 on CUDA, float16 on MPS, float32 on CPU.

    Raises:
        STTMError: the device is not in this machine, or flash attention cannot run on it.
        ValueError: an unknown dtype; several processes were told to use the same device, or a
            device map over all.
    """
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    rank, world_size, local_rank = (int(os.environ.get(name, default)) for name, default in _LAUNCHER)
    if world_size > 1 and device_map is not None:
        raise ValueError(
            f"device_map={device_map!r} spreads one model over the devices, but {world_size} processes were "
            "started; start one process, or leave out device_map"
        )
    check_device(device)
    chosen = torch.device(device or _best_device_type())
    check_attention(attn_implementation, chosen)
    if chosen.type == "cuda" and chosen.index is None:
        chosen = torch.device("cuda", local_rank % max(1, torch.cuda.device_count()))
    elif chosen.type == "cuda" and world_size > 1:
        raise ValueError(f"device={device!r} is one device for {world_size} processes; say device=cuda")
    return Placement(
        device=chosen,
        device_map=device_map or {"": str(chosen)},
        dtype=_dtype(dtype, chosen),
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
        # Emulated bfloat16 (V100, T4) counts as support unless one says so, and is many times
        # slower than float16.
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16
        log.warning("%s cannot compute in bfloat16: float16 is used; dtype=bfloat16 or float32 overrides it", device)
        return torch.float16
    return torch.float16 if device.type == "mps" else torch.float32
