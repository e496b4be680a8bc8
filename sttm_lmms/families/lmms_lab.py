"""The original lmms-lab layout of LLaVA-Video and LLaVA-OneVision, read into transformers' own
classes.

The layout: ``config.json`` with ``architectures: [LlavaQwenForCausalLM]``, a SigLIP tower named by
``mm_vision_tower`` (without its last layer and its pooling head), a two-layer projector, and a
Qwen2 decoder.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
    PreTrainedModel,
    Qwen2Config,
    Qwen2Tokenizer,
    SiglipVisionConfig,
)

from sttm_lmms.errors import CheckpointError
from sttm_lmms.families.checkpoint import (
    TensorHeader,
    check_tensors,
    is_optional,
    is_unused,
    load_model,
    read_headers,
    read_json,
)

logger = logging.getLogger(__name__)

ARCHITECTURE = "LlavaQwenForCausalLM"

IMAGE_TOKEN, VIDEO_TOKEN = "<image>", "<video>"

# ChatML. A visual and the text beside it are separated by a newline, two visuals by a blank, two
# texts by nothing.
END_OF_TURN = "<|im_end|>\n"
CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% set texts = [part, loop.previtem or part] | selectattr('type', 'equalto', 'text') | list | length %}"
    "{% if not loop.first and texts < 2 %}{{ '\n' if texts else ' ' }}{% endif %}"
    "{{ part['text'] if part['type'] == 'text' else '<' + part['type'] + '>' }}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Names in the files -> names in LlavaOnevisionForConditionalGeneration; transformers itself knows
# whether this version of its SigLIP tower has a `vision_model` level.
KEY_MAPPING = {
    r"^model\.(layers|embed_tokens|norm)\.": r"model.language_model.\1.",
    r"^model\.mm_projector\.0\.": "model.multi_modal_projector.linear_1.",
    r"^model\.mm_projector\.2\.": "model.multi_modal_projector.linear_2.",
    r"^model\.vision_tower\.vision_tower\.": "model.vision_tower.",
}

# Sizes of the towers that published checkpoints name, so that no second download is needed.
KNOWN_TOWERS: dict[str, dict[str, int]] = {
    "google/siglip-so400m-patch14-384": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
    },
}

_TOWER_FIELDS = (*KNOWN_TOWERS["google/siglip-so400m-patch14-384"], "hidden_act", "layer_norm_eps", "num_channels")
_TEXT_FIELDS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("vocab_size", "hidden_act", "rms_norm_eps", "rope_theta", "rope_scaling", "max_position_embeddings"),
    *("use_sliding_window", "sliding_window", "max_window_layers", "tie_word_embeddings", "attention_dropout"),
    *("bos_token_id", "eos_token_id", "initializer_range"),
)
# What the files say and transformers' configuration has no name for; kept so that prompts and
# newlines follow it.
EXTRA_FIELDS = ("mm_newline_position", "add_time_instruction", "force_sample")


def tower_config(config: Mapping[str, Any], folder: Path) -> SiglipVisionConfig:
    """The SigLIP tower as the checkpoint runs it: without the last encoder layer and without the
    pooling head.

    Its sizes come from ``vision_tower_config.json`` beside ``config.json``, from
    :data:`KNOWN_TOWERS`, or from the hub.
    """
    name = str(config.get("mm_vision_tower", ""))
    local = folder / "vision_tower_config.json"
    sizes: Mapping[str, Any]
    if local.is_file():
        sizes = read_json(local)
    elif name in KNOWN_TOWERS:
        sizes = KNOWN_TOWERS[name]
    else:
        try:
            hub = AutoConfig.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{folder}/config.json: the sizes of mm_vision_tower {name!r} are not known and the hub did not give "
                f"them; put its vision configuration into {local.name} beside it. Known: {', '.join(KNOWN_TOWERS)}"
            ) from error
        sizes = getattr(hub, "vision_config", hub).to_dict()
    fields: dict[str, Any] = {key: sizes[key] for key in _TOWER_FIELDS if key in sizes}
    fields["num_hidden_layers"] -= 1
    return SiglipVisionConfig(**fields, vision_use_head=False)


def grid_pinpoints(value: Any, image_size: int) -> list[list[int]] | None:
    """Image resolutions ``[[height, width], ...]`` in pixels, also from the short form
    ``"(1x1),...,(6x6)"``."""
    if not isinstance(value, str):
        return [list(pair) for pair in value] if value else None
    corners = [(int(h), int(w)) for h, w in re.findall(r"\((\d+)x(\d+)\)", value)]
    if not corners:
        raise CheckpointError(
            f"config.json: image_grid_pinpoints {value!r} is neither a list nor like '(1x1),...,(6x6)'"
        )
    (h0, w0), (h1, w1) = corners[0], corners[-1]
    return [[h * image_size, w * image_size] for h in range(h0, h1 + 1) for w in range(w0, w1 + 1)]


def model_config(config: Mapping[str, Any], folder: Path) -> LlavaOnevisionConfig:
    """transformers' configuration of an original checkpoint.

    Average pooling is overridden with bilinear pooling, as the published code does when it loads a
    checkpoint.

    Raises:
        CheckpointError: a projector, pooling or frame layout that no published checkpoint has.
    """
    if config.get("mm_spatial_pool_mode") == "average":
        logger.warning(
            "%s/config.json: mm_spatial_pool_mode='average' is overridden with 'bilinear', as the published runs do",
            folder,
        )
        config = {**config, "mm_spatial_pool_mode": "bilinear"}
    fixed = {
        "mm_projector_type": "mlp2x_gelu",
        "mm_spatial_pool_mode": "bilinear",
        "mm_spatial_pool_stride": 2,
        "add_faster_video": False,
    }
    for key, supported in fixed.items():
        if config.get(key, supported) not in (supported, None):
            raise CheckpointError(f"{folder}/config.json: {key}={config[key]!r} is not supported, only {supported!r}")
    vision: Any = tower_config(config, folder)
    text = Qwen2Config(**{key: config[key] for key in _TEXT_FIELDS if key in config})
    image_id = int(config.get("image_token_index") or text.vocab_size - 2)  # the processor has the last word
    aspect = str(config.get("image_aspect_ratio", ""))
    result = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_id,
        video_token_index=image_id + 1,
        image_grid_pinpoints=grid_pinpoints(config.get("image_grid_pinpoints"), vision.image_size),
        vision_aspect_ratio=aspect if aspect.startswith("anyres_max_") else "anyres_max_9",
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        **{key: config[key] for key in EXTRA_FIELDS if key in config},
    )
    result.dtype = getattr(torch, str(config.get("torch_dtype") or config.get("dtype") or "float32"))
    return result


def load(
    path: Path,
    *,
    config: Mapping[str, Any],
    headers: Mapping[str, TensorHeader] | None = None,
    with_decoder: bool = True,
    **kwargs: Any,
) -> PreTrainedModel:
    """The model of an original checkpoint. Every tensor is checked by name and shape before any is
    loaded.

    Args:
        headers: as in :func:`~sttm_lmms.families.checkpoint.load_model`.
        with_decoder: False builds and reads no decoder layer.
    """
    hf_config = model_config(config, path)
    _check(path, hf_config, read_headers(path) if headers is None else headers)
    hf_config = hf_config if with_decoder else without_layers(hf_config)
    kwargs |= {"config": hf_config, "key_mapping": KEY_MAPPING, "checked": True, "headers": headers}
    return load_model(LlavaOnevisionForConditionalGeneration, path, **kwargs)


def without_layers(config: Any) -> Any:
    """``config``, changed in place: its decoder has no layers (transformers lists their tensors as
    unexpected)."""
    config.text_config.num_hidden_layers = 0
    config.text_config.layer_types = []
    return config


def _check(folder: Path, config: Any, headers: Mapping[str, TensorHeader]) -> None:
    with torch.device("meta"):
        empty = LlavaOnevisionForConditionalGeneration(config)
    expected = {_plain(name): tuple(tensor.shape) for name, tensor in empty.state_dict().items()}
    found = {_plain(rename(name)): header for name, header in headers.items()}
    dropped = f"model.vision_tower.encoder.layers.{config.vision_config.num_hidden_layers}."
    optional = [name for name in expected if is_optional(name)]
    if config.tie_word_embeddings:
        optional.append("lm_head.weight")
    check_tensors(
        folder,
        found,
        expected,
        optional=optional,
        unused=lambda name: is_unused(name) or name.startswith(dropped),
    )


def rename(name: str) -> str:
    """The model's name of a tensor in an original checkpoint."""
    for pattern, replacement in KEY_MAPPING.items():
        name = re.sub(pattern, replacement, name)
    return name


def _plain(name: str) -> str:
    return name.replace("vision_tower.vision_model.", "vision_tower.")


def load_tokenizer(folder: Path) -> Any:
    """Qwen2's tokenizer from a checkpoint folder. Raises :class:`CheckpointError` where there is
    none."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise CheckpointError(
            f"{folder}: no tokenizer.json and no vocab.json; the tokenizer comes with a checkpoint, copy it here"
        )
    return Qwen2Tokenizer.from_pretrained(folder)


def load_processor(folder: Path, config: Any) -> LlavaOnevisionProcessor:
    """transformers' processor for an original checkpoint, which has a tokenizer but no preprocessor
    settings.

    A ``preprocessor_config.json`` beside the checkpoint takes precedence over SigLIP's usual
    settings.
    """
    own = {}
    if (folder / "preprocessor_config.json").is_file():
        own = read_json(folder / "preprocessor_config.json")
    tokenizer = load_tokenizer(folder)
    _add_visual_tokens(tokenizer, config, folder)
    return build_processor(tokenizer, config, own)


def build_processor(tokenizer: Any, config: Any, own: Mapping[str, Any] | None = None) -> LlavaOnevisionProcessor:
    """A processor that resizes (bicubic) to the tower's square and normalises to [-1, 1], as SigLIP
    was trained.

    Args:
        tokenizer: has ``<image>`` and ``<video>``.
        config: a ``LlavaOnevisionConfig``.
        own: ``size``, ``image_mean`` and ``image_std`` that replace the defaults.
    """
    # Both need torchvision, which a machine that only runs stored features may not have.
    from transformers.models.llava_onevision.image_processing_llava_onevision import LlavaOnevisionImageProcessor
    from transformers.models.llava_onevision.video_processing_llava_onevision import LlavaOnevisionVideoProcessor

    side = config.vision_config.image_size
    settings: dict[str, Any] = {
        "size": {"height": side, "width": side},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    settings |= {key: value for key, value in (own or {}).items() if key in settings}
    return LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(image_grid_pinpoints=config.image_grid_pinpoints, **settings),
        video_processor=LlavaOnevisionVideoProcessor(**settings),
        tokenizer=tokenizer,
        num_image_tokens=(side // config.vision_config.patch_size) ** 2,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
        vision_aspect_ratio=config.vision_aspect_ratio,
    )


def _add_visual_tokens(tokenizer: Any, config: Any, folder: Path) -> None:
    """Make ``<image>`` and ``<video>`` single tokens that the embedding matrix has rows for."""
    tokenizer.add_tokens([IMAGE_TOKEN, VIDEO_TOKEN], special_tokens=True)
    if max(tokenizer.convert_tokens_to_ids([IMAGE_TOKEN, VIDEO_TOKEN])) >= config.text_config.vocab_size:
        raise CheckpointError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens with {IMAGE_TOKEN} and {VIDEO_TOKEN}, "
            f"but config.json has vocab_size={config.text_config.vocab_size}; tokenizer and weights do not match"
        )
