"""A small random InternVL model; its tiles are 4x4 tokens instead of 16x16."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import transformers
from transformers.models.got_ocr2.image_processing_got_ocr2 import GotOcr2ImageProcessor
from transformers.models.internvl.video_processing_internvl import InternVLVideoProcessor

from sttm_lmms.testing.tokens import tiny_tokenizer

if TYPE_CHECKING:
    from sttm_lmms.testing.tiny import TinySizes

TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>")
NAMED = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<IMG_CONTEXT>\n{% elif part['type'] == 'video' %}<video>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_PATCH = 4


def internvl(sizes: TinySizes, tie: bool) -> tuple[Any, Any]:
    """A Qwen2 decoder as in InternVL3, square tiles of 32 pixels."""
    tokenizer: Any = tiny_tokenizer(TOKENS, extra_special_tokens=NAMED)
    side = 8 * _PATCH
    config = transformers.InternVLConfig(
        text_config={
            "model_type": "qwen2",
            **sizes.text(tie),
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config={
            "hidden_size": sizes.vision_hidden_size,
            "intermediate_size": 2 * sizes.vision_hidden_size,
            "num_hidden_layers": sizes.vision_layers,
            "num_attention_heads": 2,
            "attention_bias": True,
            "image_size": [side, side],
            "patch_size": [_PATCH, _PATCH],
            "use_absolute_position_embeddings": True,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=16,
        tie_word_embeddings=tie,
    )
    pixels: dict[str, Any] = {
        "size": {"height": side, "width": side},
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    processor = transformers.InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(**pixels),
        video_processor=InternVLVideoProcessor(**pixels),
        tokenizer=tokenizer,
        image_seq_length=16,
        chat_template=CHAT_TEMPLATE,
    )
    return transformers.InternVLForConditionalGeneration(config), processor
