"""The checkpoint that was asked for, on the device of this process."""

from __future__ import annotations

from typing import Any

from torch import nn

from sttm_lmms.errors import CheckpointError, OutOfMemoryError
from sttm_lmms.explain import is_out_of_memory
from sttm_lmms.families import find_family, get_family, load_pretrained
from sttm_lmms.families.requirements import check_attention, check_quantization
from sttm_lmms.model_wrappers.arguments import WrapperArguments
from sttm_lmms.model_wrappers.placement import Placement


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
    # LLaVA-Video and LLaVA-OneVision are one architecture. What differs is in the checkpoint; where it says nothing,
    # the family that was asked for decides.
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
            f"it smaller, device_map=auto spreads it over all GPUs, and 'sttm-lmms rehearse {arguments.pretrained} "
            "--task TASK --gpus N' says what it needs"
        ) from error
