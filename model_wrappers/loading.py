"""The checkpoint that was asked for, on the device of this process."""

from __future__ import annotations

from typing import Any

from sttm_lmms.model_wrappers.arguments import WrapperArguments
from sttm_lmms.model_wrappers.placement import Placement
from torch import nn

from sttm_lmms.errors import CheckpointError
from sttm_lmms.families import family_of, layout_of, load_pretrained
from sttm_lmms.families.checkpoint import resolve_checkpoint


def load(arguments: WrapperArguments, placement: Placement, family: str) -> tuple[nn.Module, Any]:
    """Model and processor.

    Raises:
        CheckpointError: it cannot be read, or is of a family that has a wrapper of its own.
    """
    folder = resolve_checkpoint(arguments.pretrained)
    _check_family(arguments.pretrained, layout_of(folder)[0].name, family, converted="llava")
    options: dict[str, Any] = {}
    if arguments.load_in_4bit:
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_compute_dtype=placement.dtype, bnb_4bit_quant_type="nf4"
        )
    model, processor = load_pretrained(
        folder,
        dtype=placement.dtype,
        device_map=placement.device_map,
        attn_implementation=arguments.attn_implementation,
        family=family,
        **options,
    )
    _check_family(arguments.pretrained, family_of(model).name, family)
    return model, processor


def _check_family(checkpoint: str, found: str, wanted: str, converted: str = "-") -> None:
    """Refuse another family; converted LLaVA checkpoints may not say which one they are before they are loaded."""
    if found != wanted and not (found.startswith(converted) and wanted.startswith(converted)):
        raise CheckpointError(f"{checkpoint} is a {found} checkpoint: use --model sttm_{found}")
