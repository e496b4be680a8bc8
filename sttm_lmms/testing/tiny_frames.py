"""Small random checkpoints of the families with a Llama decoder, for :mod:`sttm_lmms.testing.tiny`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers
from transformers.models.smolvlm.image_processing_smolvlm import SmolVLMImageProcessor
from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor

from sttm_lmms.testing.tiny import TinySizes, tiny_tokenizer

SMOLVLM_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<global-img>"),
    *("<image>", "<video>"),
    *(f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)),
)
# As published; the processor takes its own where there is a video.
SMOLVLM_CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def _smolvlm(sizes: TinySizes, tie: bool) -> tuple[Any, Any]:
    """Tiles of 32 pixels, of which 4x4 tokens are left."""
    side, patch, merged = 32, 4, 2
    tokenizer: Any = tiny_tokenizer(SMOLVLM_TOKENS, end="<end_of_utterance>")
    config = transformers.SmolVLMConfig(
        text_config={"model_type": "llama", **llama(sizes, tie), "eos_token_id": tokenizer.eos_token_id},
        vision_config={
            "hidden_size": sizes.vision_hidden_size,
            "intermediate_size": 2 * sizes.vision_hidden_size,
            "num_hidden_layers": sizes.vision_layers,
            "num_attention_heads": 2,
            "image_size": side,
            "patch_size": patch,
        },
        scale_factor=merged,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=tie,
    )
    # Part of published preprocessor_config.json files, and not of the class's declared arguments.
    sampling: dict[str, Any] = {"video_sampling": {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": side}}}
    processor = transformers.SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(size={"longest_edge": 4 * side}, max_image_size={"longest_edge": side}),
        video_processor=SmolVLMVideoProcessor(max_image_size={"longest_edge": side}, **sampling),
        tokenizer=tokenizer,
        image_seq_len=(side // patch // merged) ** 2,
        chat_template=SMOLVLM_CHAT_TEMPLATE,
    )
    return transformers.SmolVLMForConditionalGeneration(config), processor


def llama(sizes: TinySizes, tie: bool) -> dict[str, Any]:
    """A Llama decoder's configuration."""
    text = {name: value for name, value in sizes.text(tie).items() if name != "max_window_layers"}
    rope = {"rope_type": "default", "rope_theta": 1e5}
    return {**text, "rope_parameters": rope, "bos_token_id": None, "pad_token_id": None}


BUILDERS: dict[str, Callable[[TinySizes, bool], tuple[Any, Any]]] = {"smolvlm": _smolvlm}
