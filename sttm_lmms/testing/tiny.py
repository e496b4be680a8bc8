"""Small random checkpoints of the real classes, built offline: for tests, demos and training from
scratch.

They have everything a published checkpoint has (configuration, safetensors, a byte-level tokenizer
of the same class, chat template, image and video processor), so that all code paths run on them;
what they say means nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.got_ocr2.image_processing_got_ocr2 import GotOcr2ImageProcessor
from transformers.models.internvl.video_processing_internvl import InternVLVideoProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from sttm_lmms.config import check_choice
from sttm_lmms.errors import unknown
from sttm_lmms.families import lmms_lab
from sttm_lmms.testing.export import save_original

LLAVA_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")
QWEN_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
INTERNVL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>")
INTERNVL_NAMES = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}


def _chat_template(image: str, video: str, system: str = "") -> str:
    """A ChatML template in Jinja: what stands for an image and a video, and a system prompt where
    none is given."""
    default = f"<|im_start|>system\n{system}<|im_end|>\n"
    first = "{% if loop.first and message['role'] != 'system' %}" + default + "{% endif %}" if system else ""
    visual = "{% if part['type'] == 'image' %}" + image + "{% elif part['type'] == 'video' %}" + video
    return (
        "{% for message in messages %}" + first + "<|im_start|>{{ message['role'] }}\n"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
        + visual
        + "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


_QWEN_PADS = ("<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>")
QWEN_CHAT_TEMPLATE = _chat_template(*_QWEN_PADS, system="You are a helpful assistant.")
QWEN3_CHAT_TEMPLATE = _chat_template(*_QWEN_PADS)
QWEN35_CHAT_TEMPLATE = QWEN3_CHAT_TEMPLATE.replace(
    "<|im_start|>assistant\n{% endif %}",
    "<|im_start|>assistant\n<think>\n{% if enable_thinking is false %}\n</think>\n\n{% endif %}{% endif %}",
)
INTERNVL_CHAT_TEMPLATE = _chat_template("<IMG_CONTEXT>\n", "<video>\n")


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

    def text(self, tie: bool) -> dict[str, Any]:
        """The decoder's sizes by the names of transformers' configurations."""
        return {
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": 32768,
            "max_window_layers": self.layers,
            "tie_word_embeddings": tie,
        }

    def rope(self, head: int | None = None, parts: tuple[int, int, int] = (2, 3, 3)) -> dict[str, Any]:
        """Multimodal rotary positions; a real head of 128 channels has eight units: sections 16, 24
        and 24."""
        unit = (head or self.hidden_size // self.heads) // 16
        return {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [part * unit for part in parts]}


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
        family: a model family; ``qwen3_vl_moe``, ``qwen3_5_moe`` and ``glm4v_moe`` are those with
            experts, and ``glm46v`` is of the family ``glm4v``.
        layout: ``original`` (lmms-lab names; LLaVA only) or ``hf``. The others have one layout,
            given for both.
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
    if layout == "original" and family.startswith("llava"):
        save_original(model, processor, folder, max_shard_size=max_shard_size)
    else:
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        processor.save_pretrained(folder)
    return folder


def tiny_model(
    family: str, *, seed: int = 0, sizes: TinySizes | None = None, tie_word_embeddings: bool = False
) -> tuple[Any, Any]:
    """A small random model (float32, eval mode) of a family and its processor; nothing is
    written."""
    from sttm_lmms.testing import tiny_frames, tiny_glm

    builders: dict[str, Callable[[TinySizes, bool], tuple[Any, Any]]] = {
        "llava_video": partial(_llava, "llava_video"),
        "llava_onevision": partial(_llava, "llava_onevision"),
        "qwen2_vl": _qwen2_vl,
        "qwen2_5_vl": _qwen2_5_vl,
        "qwen3_vl": _qwen3_vl,
        "qwen3_vl_moe": _qwen3_vl_moe,
        "qwen3_5": _qwen3_5,
        "qwen3_5_moe": _qwen3_5_moe,
        "internvl": _internvl,
        **tiny_frames.BUILDERS,
        **tiny_glm.BUILDERS,
    }
    if family not in builders:
        raise unknown("model family", family, builders)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, processor = builders[family](sizes or TinySizes(), tie_word_embeddings)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    return model.eval(), processor


def tiny_tokenizer(
    special_tokens: tuple[str, ...], kind: Any = transformers.Qwen2Tokenizer, end: str = "<|im_end|>", **kwargs: Any
) -> Any:
    """A tokenizer of class ``kind`` with one token per byte (ids 0 to 255) and the given special
    tokens after them."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate([*letters, *special_tokens])}
    return kind(
        vocab=vocab,
        merges=[],
        eos_token=end,
        additional_special_tokens=list(special_tokens[1:]),
        model_max_length=32768,
        **kwargs,
    )


def _llava(family: str, sizes: TinySizes, tie: bool) -> tuple[Any, Any]:
    tokenizer: Any = tiny_tokenizer(LLAVA_TOKENS)
    image_id, video_id, end = tokenizer.convert_tokens_to_ids(["<image>", "<video>", "<|im_end|>"])
    video = family == "llava_video"
    extras: dict[str, Any] = {"mm_newline_position": "grid" if video else "one_token", "add_time_instruction": video}
    config = transformers.LlavaOnevisionConfig(
        vision_config=transformers.SiglipVisionConfig(
            hidden_size=sizes.vision_hidden_size,
            intermediate_size=2 * sizes.vision_hidden_size,
            num_hidden_layers=sizes.vision_layers,
            num_attention_heads=2,
            image_size=sizes.image_size,
            patch_size=sizes.patch_size,
            vision_use_head=False,
        ),
        text_config=transformers.Qwen2Config(
            **sizes.text(tie),
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
    return transformers.LlavaOnevisionForConditionalGeneration(config), lmms_lab.build_processor(tokenizer, config)


def _qwen2_vl(sizes: TinySizes, tie: bool) -> tuple[Any, Any]:
    tokenizer: Any = tiny_tokenizer(QWEN_TOKENS)
    config = transformers.Qwen2VLConfig(
        text_config={
            **sizes.text(tie),
            "rope_parameters": sizes.rope(),
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config={
            "depth": sizes.vision_layers,
            "embed_dim": sizes.vision_hidden_size,
            "hidden_size": sizes.hidden_size,
            "num_heads": 2,
            "mlp_ratio": 2,
        },
        **_visual_ids(tokenizer),
        tie_word_embeddings=tie,
    )
    processor = transformers.Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(),
        video_processor=Qwen2VLVideoProcessor(),
        tokenizer=tokenizer,
        chat_template=QWEN_CHAT_TEMPLATE,
    )
    return transformers.Qwen2VLForConditionalGeneration(config), processor


def _qwen2_5_vl(sizes: TinySizes, tie: bool) -> tuple[Any, Any]:
    """Windows of 4x4 tokens in the vision tower but for its last layer, positions that count in
    time."""
    tokenizer: Any = tiny_tokenizer(QWEN_TOKENS)
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            **sizes.text(tie),
            "rope_parameters": sizes.rope(),
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


def _qwen3_vl(sizes: TinySizes, tie: bool) -> tuple[Any, Any]:
    """Features of three vision layers for the decoder's first three, heads wider than their share
    of the channels."""
    tokenizer: Any = tiny_tokenizer(QWEN_TOKENS)
    config = transformers.Qwen3VLConfig(**_qwen3(sizes, tie, tokenizer))
    return transformers.Qwen3VLForConditionalGeneration(config), _qwen3_processor(tokenizer)


def _qwen3_vl_moe(sizes: TinySizes, tie: bool) -> tuple[Any, Any]:
    """As :func:`_qwen3_vl`, with four experts, of which each token takes two."""
    tokenizer: Any = tiny_tokenizer(QWEN_TOKENS)
    parts = _qwen3(sizes, tie, tokenizer)
    parts["text_config"] |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": sizes.hidden_size}
    config = transformers.Qwen3VLMoeConfig(**parts)
    return transformers.Qwen3VLMoeForConditionalGeneration(config), _qwen3_processor(tokenizer)


def _qwen3_5(sizes: TinySizes, tie: bool) -> tuple[Any, Any]:
    """Every second layer is recurrent (published: three of four), a quarter of each head is
    rotated."""
    tokenizer: Any = tiny_tokenizer(QWEN_TOKENS, transformers.Qwen3_5Tokenizer)
    config = transformers.Qwen3_5Config(**_hybrid(sizes, tie, tokenizer))
    processor = _qwen3_processor(tokenizer, QWEN35_CHAT_TEMPLATE)
    return transformers.Qwen3_5ForConditionalGeneration(config), processor


def _qwen3_5_moe(sizes: TinySizes, tie: bool) -> tuple[Any, Any]:
    """As :func:`_qwen3_5`, with four experts, of which each token takes two, and one for all."""
    tokenizer: Any = tiny_tokenizer(QWEN_TOKENS, transformers.Qwen3_5Tokenizer)
    parts = _hybrid(sizes, tie, tokenizer)
    del parts["text_config"]["intermediate_size"]
    parts["text_config"] |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": sizes.hidden_size}
    parts["text_config"]["shared_expert_intermediate_size"] = sizes.hidden_size
    config = transformers.Qwen3_5MoeConfig(**parts)
    processor = _qwen3_processor(tokenizer, QWEN35_CHAT_TEMPLATE)
    return transformers.Qwen3_5MoeForConditionalGeneration(config), processor


def _hybrid(sizes: TinySizes, tie: bool, tokenizer: Any) -> dict[str, Any]:
    parts = _qwen3(sizes, tie, tokenizer)
    head = 4 * sizes.hidden_size // sizes.heads  # 9B: 16 heads of 256 channels for 4096
    # Published: sections 11, 11 and 10 of the 32 frequencies of a quarter of a head.
    third = head // 8 // 3
    rope = {"rope_theta": 1e7, "partial_rotary_factor": 0.25, "mrope_section": [head // 8 - 2 * third, third, third]}
    parts["text_config"] |= {
        "head_dim": head,
        "rope_parameters": {"rope_type": "default", "mrope_interleaved": True, **rope},
        "full_attention_interval": 2,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    }
    del parts["vision_config"]["deepstack_visual_indexes"]
    return parts


def _qwen3(sizes: TinySizes, tie: bool, tokenizer: Any) -> dict[str, Any]:
    head = 2 * sizes.hidden_size // sizes.heads  # 4B: 32 heads of 128 channels for 2560
    # Published: sections 24, 20 and 20, of every third frequency each.
    rope = sizes.rope(head, (4, 2, 2)) | {"rope_theta": 5e6, "mrope_interleaved": True}
    return {
        "text_config": {
            **sizes.text(tie),
            "head_dim": head,
            "rope_parameters": rope,
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


def _qwen3_processor(tokenizer: Any, chat_template: str = QWEN3_CHAT_TEMPLATE) -> Any:
    return transformers.Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(
            patch_size=16,
            size={"shortest_edge": 65536, "longest_edge": 16777216},
            image_mean=[0.5, 0.5, 0.5],
            image_std=[0.5, 0.5, 0.5],
        ),
        video_processor=Qwen3VLVideoProcessor(size={"shortest_edge": 4096, "longest_edge": 25165824}),
        tokenizer=tokenizer,
        chat_template=chat_template,
    )


def _visual_ids(tokenizer: Any) -> dict[str, Any]:
    ids = dict(zip(QWEN_TOKENS, tokenizer.convert_tokens_to_ids(list(QWEN_TOKENS)), strict=True))
    return {
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
    }


def _internvl(sizes: TinySizes, tie: bool) -> tuple[Any, Any]:
    """A Qwen2 decoder as in InternVL3, square tiles of 32 pixels."""
    tokenizer: Any = tiny_tokenizer(INTERNVL_TOKENS, extra_special_tokens=INTERNVL_NAMES)
    patch, side = 4, 32
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
            "patch_size": [patch, patch],
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
        chat_template=INTERNVL_CHAT_TEMPLATE,
    )
    return transformers.InternVLForConditionalGeneration(config), processor
