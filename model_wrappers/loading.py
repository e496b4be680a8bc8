"""The checkpoint that was asked for, on the device of this process."""

from __future__ import annotations

from typing import Any

from sttm_lmms.model_wrappers.arguments import WrapperArguments
from sttm_lmms.model_wrappers.placement import Placement
from torch import nn

from sttm_lmms.errors import CheckpointError, OutOfMemoryError
from sttm_lmms.explain import is_out_of_memory
from sttm_lmms.families import layout_of, load_pretrained
from sttm_lmms.families.checkpoint import resolve_checkpoint


def load(arguments: WrapperArguments, placement: Placement, family: str) -> tuple[nn.Module, Any]:
    """Model and processor.

    Raises:
        CheckpointError: it cannot be read, or is of another architecture.
        OutOfMemoryError: its weights do not fit where they were to go.
    """
    folder = resolve_checkpoint(arguments.pretrained)
    found = layout_of(folder)[0].name
    if "qwen2_vl" in (found, family) and found != family:
        raise CheckpointError(f"{arguments.pretrained} is a {found} checkpoint: use --model sttm_{found}")
    options: dict[str, Any] = {}
    if arguments.load_in_4bit:
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_compute_dtype=placement.dtype, bnb_4bit_quant_type="nf4"
        )
    # LLaVA-Video and LLaVA-OneVision are one architecture. What differs is in the checkpoint; where it says nothing,
    # the family that was asked for decides.
    try:
        return load_pretrained(
            folder,
            dtype=placement.dtype,
            device_map=placement.device_map,
            attn_implementation=arguments.attn_implementation,
            family=family,
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
