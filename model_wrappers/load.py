"""The checkpoint that was asked for, on the device of this process, and what is said where memory
runs out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from sttm_lmms.errors import CheckpointError, OutOfMemoryError
from sttm_lmms.explain import is_out_of_memory
from sttm_lmms.families import find_family, get_family, load_pretrained
from sttm_lmms.families.placement import Placement, place_model
from sttm_lmms.families.requirements import check_attention, check_quantization
from sttm_lmms.model_wrappers.arguments import WrapperArguments
from sttm_lmms.model_wrappers.settings import TaskSettings
from sttm_lmms.runtime.memory import suggest_settings


def place(arguments: WrapperArguments) -> Placement:
    """:func:`~sttm_lmms.families.placement.place_model` for these arguments, with its errors."""
    return place_model(
        arguments.device,
        arguments.dtype,
        device_map=arguments.device_map,
        attn_implementation=arguments.attn_implementation,
    )


def make_reproducible(seed: int = 0) -> None:
    """Fix every seed and ask for deterministic kernels; an operation that has none warns. Lasts for
    the process."""
    from transformers import set_seed

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when the first CUDA context is made
    set_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False


def check_family(arguments: WrapperArguments, family: str) -> None:
    """Look at the checkpoint's configuration; no weights are downloaded for it.

    Raises:
        CheckpointError: it cannot be had, or is of another family.
    """
    found, _ = find_family(arguments.pretrained, revision=arguments.revision)
    if found.architectures != get_family(family).architectures:
        raise CheckpointError(f"{arguments.pretrained} is a {found.name} checkpoint: use --model sttm_{found.name}")


def check_packages(arguments: WrapperArguments) -> None:
    """Raise ``STTMError`` if an argument needs a package that is not installed."""
    check_attention(arguments.attn_implementation)
    check_quantization(arguments.load_in_4bit)


def load(arguments: WrapperArguments, placement: Placement, family: str, **options: Any) -> tuple[nn.Module, Any]:
    """Model and processor. ``options`` are the family's own, see its ``load_model``.

    Raises:
        CheckpointError: it cannot be read, or is of another architecture.
        OutOfMemoryError: its weights do not fit where they were to go.
    """
    check_packages(arguments)
    check_family(arguments, family)
    # LLaVA-Video and LLaVA-OneVision are one architecture. What differs is in the checkpoint; where
    # it says nothing, the family that was asked for decides.
    try:
        return load_pretrained(
            arguments.pretrained,
            revision=arguments.revision,
            dtype=placement.dtype,
            device_map=placement.device_map,
            attn_implementation=arguments.attn_implementation,
            family=family,
            load_in_4bit=arguments.load_in_4bit,
            **options,
        )
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"out of memory while {arguments.pretrained} was loaded onto {placement.device}: load_in_4bit=True makes "
            f"it smaller, device_map=auto spreads it over all GPUs, and 'sttm-lmms check {arguments.pretrained} "
            "--task TASK --gpus N' says what it needs"
        ) from error


def explain_out_of_memory(
    error: Exception, arguments: WrapperArguments, tasks: Sequence[TaskSettings], device: torch.device
) -> Exception:
    """``error`` itself; or, where memory ran out while answering, which settings to lower, with
    their values."""
    if not is_out_of_memory(error):
        return error
    ways = suggest_settings(
        batch_size=arguments.batch_size,
        keep=arguments.keep,
        host_cache_gb=arguments.host_cache_gb,
        eager=arguments.attn_implementation == "eager",
        frames=max((task.video.max_frames for task in tasks), default=arguments.max_frames),
        reduced=arguments.method != "none",
    )
    return OutOfMemoryError(f"out of memory on {device} while answering: lower {ways}")
