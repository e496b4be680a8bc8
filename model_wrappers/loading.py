"""The checkpoint that was asked for, on the device of this process."""

from __future__ import annotations

from typing import Any

from sttm_lmms.model_wrappers.arguments import WrapperArguments
from sttm_lmms.model_wrappers.placement import Placement
from torch import nn

from sttm_lmms.errors import CheckpointError
from sttm_lmms.families import family_of, load_pretrained


def load(arguments: WrapperArguments, placement: Placement, family: str) -> tuple[nn.Module, Any]:
    """Model and processor.

    Raises:
        CheckpointError: it cannot be read, or is of a family that has a wrapper of its own.
    """
    options: dict[str, Any] = {}
    if arguments.load_in_4bit:
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_compute_dtype=placement.dtype, bnb_4bit_quant_type="nf4"
        )
    model, processor = load_pretrained(
        arguments.pretrained,
        dtype=placement.dtype,
        device_map=placement.device_map,
        attn_implementation=arguments.attn_implementation,
        **options,
    )
    found = family_of(model).name
    if found != family:
        hint = "; a converted LLaVA-Video needs add_time_instruction in its config.json" if "llava" in found else ""
        raise CheckpointError(f"{arguments.pretrained} is a {found} checkpoint: use --model sttm_{found}{hint}")
    return model, processor
