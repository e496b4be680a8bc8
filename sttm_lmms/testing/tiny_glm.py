"""Small random checkpoints of GLM-4.1V, 4.5V and 4.6V, for :mod:`sttm_lmms.testing.tiny`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers
from transformers.models.glm4v.image_processing_glm4v import Glm4vImageProcessor
from transformers.models.glm4v.video_processing_glm4v import Glm4vVideoProcessor
from transformers.models.glm46v.image_processing_glm46v import Glm46VImageProcessor
from transformers.models.glm46v.video_processing_glm46v import Glm46VVideoProcessor

from sttm_lmms.testing.tiny import TinySizes, tiny_tokenizer

GLM_TOKENS = (
    *("<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "[gMASK]", "<sop>", "<|begin_of_image|>"),
    *("<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>", "<|image|>", "<|video|>"),
)
GLM_CHAT_TEMPLATE = (
    "[gMASK]<sop>\n{% for message in messages %}<|{{ message['role'] }}|>\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|begin_of_image|><|image|><|end_of_image|>"
    "{% elif part['type'] == 'video' %}<|begin_of_video|><|video|><|end_of_video|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% if message['role'] == 'user' and enable_thinking is false %}/nothink{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n"
    "{% if enable_thinking is false %}<think></think>\n{% endif %}{% endif %}"
)


def _glm4v(sizes: TinySizes, tie: bool) -> tuple[Any, Any]:
    tokenizer: Any = tiny_tokenizer(GLM_TOKENS, end="<|user|>")
    config = transformers.Glm4vConfig(**_glm(sizes, tie, tokenizer))
    parts = {"image_processor": Glm4vImageProcessor(), "video_processor": Glm4vVideoProcessor()}
    processor = transformers.Glm4vProcessor(**parts, tokenizer=tokenizer, chat_template=GLM_CHAT_TEMPLATE)
    return transformers.Glm4vForConditionalGeneration(config), processor


def _glm4v_moe(sizes: TinySizes, tie: bool) -> tuple[Any, Any]:
    """GLM-4.5V: one dense layer, then four experts, of which each token takes two, and one for
    all; half of each head is rotated."""
    tokenizer: Any = tiny_tokenizer(GLM_TOKENS, end="<|user|>")
    parts = _glm(sizes, tie, tokenizer)
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": sizes.hidden_size}
    parts["text_config"] |= {**experts, "head_dim": 2 * sizes.hidden_size // sizes.heads}
    parts["text_config"]["rope_parameters"] |= {"mrope_section": [2, 3, 3]}
    config = transformers.Glm4vMoeConfig(**parts)
    visual = {"image_processor": Glm4vImageProcessor(), "video_processor": Glm4vVideoProcessor()}
    processor = transformers.Glm4vProcessor(**visual, tokenizer=tokenizer, chat_template=GLM_CHAT_TEMPLATE)
    return transformers.Glm4vMoeForConditionalGeneration(config), processor


def _glm46v(sizes: TinySizes, tie: bool) -> tuple[Any, Any]:
    """The decoder of GLM-4.6V-Flash, a text of its own behind each pair of frames."""
    tokenizer: Any = tiny_tokenizer(GLM_TOKENS, end="<|user|>")
    config = transformers.Glm46VConfig(**_glm(sizes, tie, tokenizer))
    parts = {"image_processor": Glm46VImageProcessor(), "video_processor": Glm46VVideoProcessor()}
    processor = transformers.Glm46VProcessor(**parts, tokenizer=tokenizer, chat_template=GLM_CHAT_TEMPLATE)
    return transformers.Glm46VForConditionalGeneration(config), processor


def _glm(sizes: TinySizes, tie: bool, tokenizer: Any) -> dict[str, Any]:
    """Published: sections 8, 12 and 12 of the 32 frequencies of half a head of 128 channels."""
    quarter = sizes.hidden_size // sizes.heads // 4
    ids = dict(zip(GLM_TOKENS, tokenizer.convert_tokens_to_ids(list(GLM_TOKENS)), strict=True))
    return {
        "text_config": {
            **sizes.text(tie),
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.5,
                "mrope_section": [quarter - 2 * (3 * quarter // 8), *2 * (3 * quarter // 8,)],
            },
            "eos_token_id": tokenizer.eos_token_id,
        },
        "vision_config": {
            "depth": sizes.vision_layers,
            "hidden_size": sizes.vision_hidden_size,
            "intermediate_size": 2 * sizes.vision_hidden_size,
            "num_heads": 2,
            "out_hidden_size": sizes.hidden_size,
            "image_size": 112,
        },
        "image_token_id": ids["<|image|>"],
        "video_token_id": ids["<|video|>"],
        **{f"{kind}_start_token_id": ids[f"<|begin_of_{kind}|>"] for kind in ("image", "video")},
        **{f"{kind}_end_token_id": ids[f"<|end_of_{kind}|>"] for kind in ("image", "video")},
        "tie_word_embeddings": tie,
    }


BUILDERS: dict[str, Callable[[TinySizes, bool], tuple[Any, Any]]] = {
    "glm4v": _glm4v,
    "glm4v_moe": _glm4v_moe,
    "glm46v": _glm46v,
}
