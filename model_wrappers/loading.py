"""The checkpoint that was asked for, on the device of this process."""

from __future__ import annotations

from typing import Any

from sttm_lmms.model_wrappers.arguments import WrapperArguments
from sttm_lmms.model_wrappers.placement import Placement
from torch import nn

from sttm_lmms.errors import CheckpointError
from sttm_lmms.families import find_family, get_family, load_pretrained


def check_family(arguments: WrapperArguments, family: str) -> None:
    """Look at the checkpoint's configuration; no weights are downloaded for it.

    Raises:
        CheckpointError: it cannot be had, or is of another family.
    """
    found, _ = find_family(arguments.pretrained, revision=arguments.revision)
    if found.architectures != get_family(family).architectures:
        raise CheckpointError(f"{arguments.pretrained} is a {found.name} checkpoint: use --model sttm_{found.name}")


def load(arguments: WrapperArguments, placement: Placement, family: str) -> tuple[nn.Module, Any]:
    """Model and processor.

    Raises:
        CheckpointError: it cannot be read, or is of another architecture.
    """
    check_family(arguments, family)
    options: dict[str, Any] = {}
    if arguments.load_in_4bit:
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_compute_dtype=placement.dtype, bnb_4bit_quant_type="nf4"
        )
    # LLaVA-Video and LLaVA-OneVision are one architecture. What differs is in the checkpoint; where it says nothing,
    # the family that was asked for decides.
    return load_pretrained(
        arguments.pretrained,
        revision=arguments.revision,
        dtype=placement.dtype,
        device_map=placement.device_map,
        attn_implementation=arguments.attn_implementation,
        family=family,
        **options,
    )
