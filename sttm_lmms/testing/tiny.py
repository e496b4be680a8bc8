"""Small random checkpoints of the real classes, built offline: for tests, demos and training from scratch.

They have everything a published checkpoint has (configuration, safetensors, a byte-level tokenizer of the same class,
chat template, image and video processor), so that all code paths run on them; what they say means nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
    SiglipVisionConfig,
)
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from sttm_lmms.config import check_choice
from sttm_lmms.errors import unknown
from sttm_lmms.families import lmms_lab
from sttm_lmms.testing.export import save_original

LLAVA_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")
QWEN_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)

QWEN_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class TinySizes:
    """Sizes of a small model.

    Attributes:
        hidden_size: channels of the decoder; a multiple of 16 per head.
        intermediate_size: channels of the decoder's MLP.
        layers: decoder layers.
        heads: attention heads.
        kv_heads: key/value heads.
        vision_hidden_size: channels of the vision tower (2 heads).
        vision_layers: layers of the vision tower that are run.
        image_size: side in pixels of what the LLaVA tower sees.
        patch_size: side in pixels of a LLaVA patch; Qwen2-VL's is 14.
        vocab_size: rows of the embedding; at least 264 (bytes and special tokens).
    """

    hidden_size: int = 64
    intermediate_size: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    vision_hidden_size: int = 32
    vision_layers: int = 2
    image_size: int = 54
    patch_size: int = 4
    vocab_size: int = 320


def build_tiny_checkpoint(
    out_dir: str | Path,
    family: str,
    layout: str = "original",
    *,
    seed: int = 0,
    sizes: TinySizes | None = None,
    dtype: torch.dtype = torch.float32,
    tie_word_embeddings: bool = False,
    max_shard_size: str = "5GB",
) -> Path:
    """Write a small random checkpoint and return its folder.

    Args:
        out_dir: folder to write; created if need be.
        family: ``llava_video``, ``llava_onevision`` or ``qwen2_vl``.
        layout: ``original`` (lmms-lab names; LLaVA only) or ``hf``. Qwen2-VL has one layout, given for both.
        seed: of the random weights; the same seed gives the same weights in both layouts.
        sizes: see :class:`TinySizes`.
        dtype: of the stored weights.
        tie_word_embeddings: store no ``lm_head``, as the 0.5B and 2B checkpoints do.
        max_shard_size: a small value such as ``"100KB"`` gives several files and an index.

    Raises:
        ValueError: an unknown family or layout.
    """
    check_choice("layout", layout, ("original", "hf"))
    folder = Path(out_dir)
    model, processor = tiny_model(family, seed=seed, sizes=sizes, tie_word_embeddings=tie_word_embeddings)
    model = model.to(dtype)
    if layout == "original" and family != "qwen2_vl":
        save_original(model, processor, folder, max_shard_size=max_shard_size)
    else:
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        processor.save_pretrained(folder)
    return folder


def tiny_model(
    family: str, *, seed: int = 0, sizes: TinySizes | None = None, tie_word_embeddings: bool = False
) -> tuple[Any, Any]:
    """A small random model (float32, eval mode) of a family and its processor; nothing is written."""
    builders = {"llava_video": _llava, "llava_onevision": _llava, "qwen2_vl": _qwen2_vl}
    if family not in builders:
        raise unknown("model family", family, builders)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, processor = builders[family](family, sizes or TinySizes(), tie_word_embeddings)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    return model.eval(), processor


def tiny_tokenizer(special_tokens: tuple[str, ...]) -> Qwen2Tokenizer:
    """Qwen2's tokenizer with one token per byte (ids 0 to 255) and the given special tokens after them."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate([*letters, *special_tokens])}
    return Qwen2Tokenizer(
        vocab=vocab,
        merges=[],
        eos_token="<|im_end|>",
        additional_special_tokens=list(special_tokens[1:]),
        model_max_length=32768,
    )


def _text_sizes(sizes: TinySizes, tie: bool) -> dict[str, Any]:
    return {
        "hidden_size": sizes.hidden_size,
        "intermediate_size": sizes.intermediate_size,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "vocab_size": sizes.vocab_size,
        "max_position_embeddings": 32768,
        "max_window_layers": sizes.layers,
        "tie_word_embeddings": tie,
    }


def _llava(family: str, sizes: TinySizes, tie: bool) -> tuple[Any, Any]:
    tokenizer: Any = tiny_tokenizer(LLAVA_TOKENS)
    image_id, video_id, end = tokenizer.convert_tokens_to_ids(["<image>", "<video>", "<|im_end|>"])
    video = family == "llava_video"
    extras: dict[str, Any] = {"mm_newline_position": "grid" if video else "one_token", "add_time_instruction": video}
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=sizes.vision_hidden_size,
            intermediate_size=2 * sizes.vision_hidden_size,
            num_hidden_layers=sizes.vision_layers,
            num_attention_heads=2,
            image_size=sizes.image_size,
            patch_size=sizes.patch_size,
            vision_use_head=False,
        ),
        text_config=Qwen2Config(
            **_text_sizes(sizes, tie),
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            bos_token_id=None,
            eos_token_id=end,
        ),
        image_token_index=image_id,
        video_token_index=video_id,
        image_grid_pinpoints=lmms_lab.grid_pinpoints("(1x1),...,(3x3)", sizes.image_size),
        tie_word_embeddings=tie,
        **extras,
    )
    return LlavaOnevisionForConditionalGeneration(config), lmms_lab.build_processor(tokenizer, config)


def _qwen2_vl(family: str, sizes: TinySizes, tie: bool) -> tuple[Any, Any]:
    tokenizer: Any = tiny_tokenizer(QWEN_TOKENS)
    ids = dict(zip(QWEN_TOKENS, tokenizer.convert_tokens_to_ids(list(QWEN_TOKENS)), strict=True))
    unit = sizes.hidden_size // sizes.heads // 16  # real head dimension 128: sections 16, 24, 24
    config = Qwen2VLConfig(
        text_config={
            **_text_sizes(sizes, tie),
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [2 * unit, 3 * unit, 3 * unit],
            },
            "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
        },
        vision_config={
            "depth": sizes.vision_layers,
            "embed_dim": sizes.vision_hidden_size,
            "hidden_size": sizes.hidden_size,
            "num_heads": 2,
            "mlp_ratio": 2,
        },
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        tie_word_embeddings=tie,
    )
    processor = Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(),
        video_processor=Qwen2VLVideoProcessor(),
        tokenizer=tokenizer,
        chat_template=QWEN_CHAT_TEMPLATE,
    )
    return Qwen2VLForConditionalGeneration(config), processor
