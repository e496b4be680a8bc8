"""Device and precision of a run, as the wrapper's arguments ask for them."""

from __future__ import annotations

import os

import torch

from sttm_lmms.families.placement import Placement, place_model
from sttm_lmms.model_wrappers.arguments import WrapperArguments

__all__ = ["Placement", "make_reproducible", "place"]


def place(arguments: WrapperArguments) -> Placement:
    """:func:`~sttm_lmms.families.placement.place_model` for these arguments, with its errors."""
    return place_model(
        arguments.device,
        arguments.dtype,
        device_map=arguments.device_map,
        attn_implementation=arguments.attn_implementation,
    )


def make_reproducible(seed: int = 0) -> None:
    """Fix every seed and ask for deterministic kernels; an operation that has none warns. Lasts for the process."""
    from transformers import set_seed

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when the first CUDA context is made
    set_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
