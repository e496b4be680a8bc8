"""Small random checkpoints of the real classes, built offline: for tests, demos and training from scratch.

They have everything a published checkpoint has (configuration, safetensors, a byte-level tokenizer of the same class,
chat template, image and video processor), so that all code paths run on them; what they say means nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
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
from sttm_lmms.testing.tiny_internvl import internvl
from sttm_lmms.testing.tiny_qwen import qwen2_5_vl, qwen3_vl, qwen3_vl_moe
from sttm_lmms.testing.tokens import QWEN_CHAT_TEMPLATE, QWEN_TOKENS, tiny_tokenizer

__all__ = ["QWEN_CHAT_TEMPLATE", "TinySizes", "build_tiny_checkpoint", "tiny_model", "tiny_tokenizer"]

LLAVA_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")


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
        family: a model family; ``qwen3_vl_moe`` is Qwen3-VL with experts.
        layout: ``original`` (lmms-lab names; LLaVA only) or ``hf``. The others have one layout, given for both.
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
    """A small random model (float32, eval mode) of a family and its processor; nothing is written."""
    builders: dict[str, Callable[[TinySizes, bool], tuple[Any, Any]]] = {
        "llava_video": partial(_llava, "llava_video"),
        "llava_onevision": partial(_llava, "llava_onevision"),
        "qwen2_vl": _qwen2_vl,
        "qwen2_5_vl": qwen2_5_vl,
        "qwen3_vl": qwen3_vl,
        "qwen3_vl_moe": qwen3_vl_moe,
        "internvl": internvl,
    }
    if family not in builders:
        raise unknown("model family", family, builders)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, processor = builders[family](sizes or TinySizes(), tie_word_embeddings)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    return model.eval(), processor


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
    return LlavaOnevisionForConditionalGeneration(config), lmms_lab.build_processor(tokenizer, config)


def _qwen2_vl(sizes: TinySizes, tie: bool) -> tuple[Any, Any]:
    tokenizer: Any = tiny_tokenizer(QWEN_TOKENS)
    ids = dict(zip(QWEN_TOKENS, tokenizer.convert_tokens_to_ids(list(QWEN_TOKENS)), strict=True))
    unit = sizes.hidden_size // sizes.heads // 16  # real head dimension 128: sections 16, 24, 24
    config = Qwen2VLConfig(
        text_config={
            **sizes.text(tie),
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
