"""Writing a LLaVA model in the original lmms-lab layout: the way back of
:mod:`sttm_lmms.families.lmms_lab`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict

from sttm_lmms.families.lmms_lab import ARCHITECTURE, EXTRA_FIELDS

_TO_ORIGINAL = {
    r"^model\.language_model\.": "model.",
    r"^model\.multi_modal_projector\.linear_1\.": "model.mm_projector.0.",
    r"^model\.multi_modal_projector\.linear_2\.": "model.mm_projector.2.",
    r"^model\.vision_tower\.(?:vision_model\.)?": "model.vision_tower.vision_tower.vision_model.",
}

_SAME_IN_TEXT = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("vocab_size", "hidden_act", "rms_norm_eps", "max_position_embeddings", "attention_dropout", "initializer_range"),
    *("bos_token_id", "eos_token_id"),
)
_SAME_IN_TOWER = (
    *("hidden_size", "intermediate_size", "num_attention_heads", "image_size", "patch_size", "num_channels"),
    *("hidden_act", "layer_norm_eps"),
)


def save_original(model: Any, processor: Any, folder: Path, *, max_shard_size: str = "5GB") -> None:
    """Write ``config.json``, the tower's sizes, tokenizer and safetensors under the names lmms-lab
    uses.

    Args:
        model: a ``LlavaOnevisionForConditionalGeneration`` with a SigLIP tower and a Qwen2 decoder.
        processor: its processor; only the tokenizer is part of the original layout.
        folder: created if need be; existing files of the same names are overwritten.
        max_shard_size: as in ``save_pretrained``; more than one shard comes with an index.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text, tower = model.config.text_config, model.config.vision_config
    config = {
        "architectures": [ARCHITECTURE],
        "model_type": "llava",
        "mm_vision_tower": f"local/siglip-patch{tower.patch_size}-{tower.image_size}",
        "mm_projector_type": "mlp2x_gelu",
        "mm_spatial_pool_mode": "bilinear",
        "mm_spatial_pool_stride": 2,
        "mm_patch_merge_type": "spatial_unpad",
        "mm_hidden_size": tower.hidden_size,
        "image_aspect_ratio": model.config.vision_aspect_ratio,
        "image_grid_pinpoints": model.config.image_grid_pinpoints,
        "image_token_index": model.config.image_token_index,
        "rope_theta": text.rope_parameters["rope_theta"],
        "tie_word_embeddings": model.config.tie_word_embeddings,
        "torch_dtype": str(model.dtype).removeprefix("torch."),
        **{key: getattr(text, key) for key in _SAME_IN_TEXT},
        **{key: value for key in EXTRA_FIELDS if (value := getattr(model.config, key, None)) is not None},
    }
    _write_json(folder / "config.json", config)
    sizes = {key: getattr(tower, key) for key in _SAME_IN_TOWER}
    _write_json(
        folder / "vision_tower_config.json",
        {"model_type": "siglip_vision_model", **sizes, "num_hidden_layers": tower.num_hidden_layers + 1},
    )
    processor.tokenizer.save_pretrained(folder)
    tensors = model.state_dict()
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    save_torch_state_dict(
        {original_name(name): tensor.contiguous() for name, tensor in tensors.items()},
        folder,
        max_shard_size=max_shard_size,
    )


def original_name(name: str) -> str:
    """The name that a tensor of the model has in an original checkpoint."""
    for pattern, replacement in _TO_ORIGINAL.items():
        name = re.sub(pattern, replacement, name)
    return name


def _write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
