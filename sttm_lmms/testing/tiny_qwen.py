"""Small random Qwen2.5-VL and Qwen3-VL models with everything that is special about the real ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import transformers
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from sttm_lmms.testing.tokens import QWEN_CHAT_TEMPLATE, QWEN_TOKENS, tiny_tokenizer

if TYPE_CHECKING:
    from sttm_lmms.testing.tiny import TinySizes

# Qwen3-VL has no system prompt of its own.
QWEN3_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def qwen2_5_vl(sizes: TinySizes, tie: bool) -> tuple[Any, Any]:
    """Windows of 4x4 tokens in the vision tower but for its last layer, positions that count in time."""
    tokenizer: Any = tiny_tokenizer(QWEN_TOKENS)
    unit = sizes.hidden_size // sizes.heads // 16  # real head dimension 128: sections 16, 24, 24
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            **sizes.text(tie),
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [2 * unit, *[3 * unit] * 2],
            },
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config={
            "depth": sizes.vision_layers,
            "hidden_size": sizes.vision_hidden_size,
            "intermediate_size": 2 * sizes.vision_hidden_size,
            "num_heads": 2,
            "out_hidden_size": sizes.hidden_size,
            "fullatt_block_indexes": [sizes.vision_layers - 1],
            "window_size": 112,
            "tokens_per_second": 2,
        },
        **_visual_ids(tokenizer),
        tie_word_embeddings=tie,
    )
    processor = transformers.Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(),
        video_processor=Qwen2VLVideoProcessor(),
        tokenizer=tokenizer,
        chat_template=QWEN_CHAT_TEMPLATE,
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config), processor


def qwen3_vl(sizes: TinySizes, tie: bool) -> tuple[Any, Any]:
    """Features of three vision layers for the decoder's first three, heads wider than their share of the channels."""
    tokenizer: Any = tiny_tokenizer(QWEN_TOKENS)
    config = transformers.Qwen3VLConfig(**_qwen3(sizes, tie, tokenizer))
    return transformers.Qwen3VLForConditionalGeneration(config), _qwen3_processor(tokenizer)


def qwen3_vl_moe(sizes: TinySizes, tie: bool) -> tuple[Any, Any]:
    """As :func:`qwen3_vl`, with four experts, of which each token takes two."""
    tokenizer: Any = tiny_tokenizer(QWEN_TOKENS)
    parts = _qwen3(sizes, tie, tokenizer)
    parts["text_config"] |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": sizes.hidden_size}
    config = transformers.Qwen3VLMoeConfig(**parts)
    return transformers.Qwen3VLMoeForConditionalGeneration(config), _qwen3_processor(tokenizer)


def _qwen3(sizes: TinySizes, tie: bool, tokenizer: Any) -> dict[str, Any]:
    head = 2 * sizes.hidden_size // sizes.heads  # 4B: 32 heads of 128 channels for 2560
    unit = head // 16  # real head dimension 128: sections 24, 20, 20, of every third frequency each
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [4 * unit, 2 * unit, 2 * unit]}
    return {
        "text_config": {
            **sizes.text(tie),
            "head_dim": head,
            "rope_parameters": {**rope, "mrope_interleaved": True},
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
        },
        "vision_config": {
            "depth": max(4, sizes.vision_layers),
            "hidden_size": sizes.vision_hidden_size,
            "intermediate_size": 2 * sizes.vision_hidden_size,
            "num_heads": 2,
            "out_hidden_size": sizes.hidden_size,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1, 2],
        },
        **_visual_ids(tokenizer),
        "tie_word_embeddings": tie,
    }


def _qwen3_processor(tokenizer: Any) -> Any:
    return transformers.Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(
            patch_size=16,
            size={"shortest_edge": 65536, "longest_edge": 16777216},
            image_mean=[0.5, 0.5, 0.5],
            image_std=[0.5, 0.5, 0.5],
        ),
        video_processor=Qwen3VLVideoProcessor(size={"shortest_edge": 4096, "longest_edge": 25165824}),
        tokenizer=tokenizer,
        chat_template=QWEN3_CHAT_TEMPLATE,
    )


def _visual_ids(tokenizer: Any) -> dict[str, Any]:
    ids = dict(zip(QWEN_TOKENS, tokenizer.convert_tokens_to_ids(list(QWEN_TOKENS)), strict=True))
    return {
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
    }
