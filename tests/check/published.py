"""Checkpoint folders of published size: every tensor by its published name and shape, in files that
hold no bytes.

Names, shapes and configurations are written down from the hub's index and config files, not derived
from our loader.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sttm_lmms.testing.tiny import tiny_model

Shapes = dict[str, tuple[int, ...]]

# hidden, intermediate, layers, heads, key/value heads, vocabulary
QWEN2 = {
    "0.5b": (896, 4864, 24, 14, 2, 151936),
    "7b": (3584, 18944, 28, 28, 4, 152064),
    "72b": (8192, 29568, 80, 64, 8, 152064),
}


def decoder(size: str, model: str, head: str) -> Shapes:
    c, wide, layers, heads, kv, vocab = QWEN2[size]
    small = c // heads * kv
    shapes: Shapes = {f"{model}embed_tokens.weight": (vocab, c), f"{model}norm.weight": (c,)}
    if size != "0.5b":  # tied to the embedding
        shapes[head] = (vocab, c)
    for number in range(layers):
        at = f"{model}layers.{number}."
        shapes |= {
            f"{at}input_layernorm.weight": (c,),
            f"{at}post_attention_layernorm.weight": (c,),
            f"{at}self_attn.q_proj.weight": (c, c),
            f"{at}self_attn.q_proj.bias": (c,),
            f"{at}self_attn.k_proj.weight": (small, c),
            f"{at}self_attn.k_proj.bias": (small,),
            f"{at}self_attn.v_proj.weight": (small, c),
            f"{at}self_attn.v_proj.bias": (small,),
            f"{at}self_attn.o_proj.weight": (c, c),
            f"{at}mlp.gate_proj.weight": (wide, c),
            f"{at}mlp.up_proj.weight": (wide, c),
            f"{at}mlp.down_proj.weight": (c, wide),
        }
    return shapes


def siglip(at: str) -> Shapes:
    shapes: Shapes = {
        f"{at}embeddings.patch_embedding.weight": (1152, 3, 14, 14),
        f"{at}embeddings.patch_embedding.bias": (1152,),
        f"{at}embeddings.position_embedding.weight": (729, 1152),
        f"{at}post_layernorm.weight": (1152,),
        f"{at}post_layernorm.bias": (1152,),
    }
    for number in range(26):
        layer = f"{at}encoder.layers.{number}."
        shapes |= {f"{layer}layer_norm{n}.{p}": (1152,) for n in (1, 2) for p in ("weight", "bias")}
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= {f"{layer}self_attn.{name}.weight": (1152, 1152), f"{layer}self_attn.{name}.bias": (1152,)}
        shapes |= {f"{layer}mlp.fc1.weight": (4304, 1152), f"{layer}mlp.fc1.bias": (4304,)}
        shapes |= {f"{layer}mlp.fc2.weight": (1152, 4304), f"{layer}mlp.fc2.bias": (1152,)}
    return shapes


def original_llava(size: str) -> Shapes:
    c = QWEN2[size][0]
    return {
        **decoder(size, "model.", "lm_head.weight"),
        "model.image_newline": (c,),
        "model.mm_projector.0.weight": (c, 1152),
        "model.mm_projector.0.bias": (c,),
        "model.mm_projector.2.weight": (c, c),
        "model.mm_projector.2.bias": (c,),
        **siglip("model.vision_tower.vision_tower.vision_model."),
    }


def hf_llava(size: str) -> Shapes:
    c = QWEN2[size][0]
    return {
        **decoder(size, "language_model.model.", "language_model.lm_head.weight"),
        "image_newline": (c,),
        "multi_modal_projector.linear_1.weight": (c, 1152),
        "multi_modal_projector.linear_1.bias": (c,),
        "multi_modal_projector.linear_2.weight": (c, c),
        "multi_modal_projector.linear_2.bias": (c,),
        **siglip("vision_tower.vision_model."),
    }


def qwen2_vl(size: str) -> Shapes:
    c = QWEN2[size][0]
    shapes: Shapes = {
        **decoder(size, "model.", "lm_head.weight"),
        "visual.patch_embed.proj.weight": (1280, 3, 2, 14, 14),
        "visual.merger.ln_q.weight": (1280,),
        "visual.merger.ln_q.bias": (1280,),
        "visual.merger.mlp.0.weight": (5120, 5120),
        "visual.merger.mlp.0.bias": (5120,),
        "visual.merger.mlp.2.weight": (c, 5120),
        "visual.merger.mlp.2.bias": (c,),
    }
    for number in range(32):
        at = f"visual.blocks.{number}."
        shapes |= {f"{at}norm{n}.{p}": (1280,) for n in (1, 2) for p in ("weight", "bias")}
        shapes |= {f"{at}attn.qkv.weight": (3840, 1280), f"{at}attn.qkv.bias": (3840,)}
        shapes |= {f"{at}attn.proj.weight": (1280, 1280), f"{at}attn.proj.bias": (1280,)}
        shapes |= {f"{at}mlp.fc1.weight": (5120, 1280), f"{at}mlp.fc1.bias": (5120,)}
        shapes |= {f"{at}mlp.fc2.weight": (1280, 5120), f"{at}mlp.fc2.bias": (1280,)}
    return shapes


def smolvlm() -> Shapes:
    """SmolVLM2-500M-Video-Instruct: a Llama decoder of 32 layers, tiles of 512 pixels."""
    c, small, wide, seen = 960, 320, 2560, 768
    shapes: Shapes = {
        "model.text_model.embed_tokens.weight": (49280, c),
        "model.text_model.norm.weight": (c,),
        "lm_head.weight": (49280, c),
        "model.connector.modality_projection.proj.weight": (c, 16 * seen),
        "model.vision_model.embeddings.patch_embedding.weight": (seen, 3, 16, 16),
        "model.vision_model.embeddings.patch_embedding.bias": (seen,),
        "model.vision_model.embeddings.position_embedding.weight": (1024, seen),
        "model.vision_model.post_layernorm.weight": (seen,),
        "model.vision_model.post_layernorm.bias": (seen,),
    }
    for number in range(32):
        at = f"model.text_model.layers.{number}."
        shapes |= {f"{at}{name}_layernorm.weight": (c,) for name in ("input", "post_attention")}
        shapes |= {f"{at}self_attn.{name}_proj.weight": (c, c) for name in ("q", "o")}
        shapes |= {f"{at}self_attn.{name}_proj.weight": (small, c) for name in ("k", "v")}
        shapes |= {f"{at}mlp.{name}_proj.weight": (wide, c) for name in ("gate", "up")}
        shapes |= {f"{at}mlp.down_proj.weight": (c, wide)}
    for number in range(12):
        at = f"model.vision_model.encoder.layers.{number}."
        shapes |= {f"{at}layer_norm{n}.{p}": (seen,) for n in (1, 2) for p in ("weight", "bias")}
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= {f"{at}self_attn.{name}.weight": (seen, seen), f"{at}self_attn.{name}.bias": (seen,)}
        shapes |= {f"{at}mlp.fc1.weight": (4 * seen, seen), f"{at}mlp.fc1.bias": (4 * seen,)}
        shapes |= {f"{at}mlp.fc2.weight": (seen, 4 * seen), f"{at}mlp.fc2.bias": (seen,)}
    return shapes


def smolvlm_config() -> dict[str, Any]:
    text = {
        "model_type": "llama",
        "hidden_size": 960,
        "intermediate_size": 2560,
        "num_hidden_layers": 32,
        "num_attention_heads": 15,
        "num_key_value_heads": 5,
        "vocab_size": 49280,
        "max_position_embeddings": 8192,
        "rope_theta": 100000,
        "rms_norm_eps": 1e-05,
        "torch_dtype": "bfloat16",
    }
    vision = {
        "model_type": "smolvlm_vision",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 512,
        "patch_size": 16,
    }
    return {
        "architectures": ["SmolVLMForConditionalGeneration"],
        "model_type": "smolvlm",
        "image_token_id": 49190,
        "scale_factor": 4,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "text_config": text,
        "vision_config": vision,
    }


def text_config(size: str) -> dict[str, Any]:
    c, wide, layers, heads, kv, vocab = QWEN2[size]
    return {
        "hidden_size": c,
        "intermediate_size": wide,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocab,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": size == "0.5b",
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
    }


def llava_config(size: str, video: bool) -> dict[str, Any]:
    own = {"mm_newline_position": "grid", "add_time_instruction": True, "force_sample": True} if video else {}
    return {
        **text_config(size),
        "architectures": ["LlavaQwenForCausalLM"],
        "model_type": "qwen2" if video else "llava",
        "mm_vision_tower": "google/siglip-so400m-patch14-384",
        "mm_projector_type": "mlp2x_gelu",
        "mm_spatial_pool_mode": "bilinear",
        "mm_spatial_pool_stride": 2,
        "mm_hidden_size": 1152,
        "image_aspect_ratio": "anyres_max_9",
        "image_grid_pinpoints": [[384, 384], [384, 768], [768, 384], [768, 768]],
        **own,
    }


def hf_llava_config(size: str) -> dict[str, Any]:
    return {
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "model_type": "llava_onevision",
        "image_token_index": 151646,
        "video_token_index": 151647,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "vision_aspect_ratio": "anyres_max_9",
        "image_grid_pinpoints": [[384, 384], [384, 768], [768, 384], [768, 768]],
        "text_config": {**text_config(size), "model_type": "qwen2"},
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 26,
            "num_attention_heads": 16,
            "image_size": 384,
            "patch_size": 14,
            "vision_use_head": False,
        },
    }


def qwen2_vl_config(size: str) -> dict[str, Any]:
    return {
        **text_config(size),
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "vision_token_id": 151654,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vision_config": {
            "depth": 32,
            "embed_dim": 1280,
            "mlp_ratio": 4,
            "num_heads": 16,
            "in_chans": 3,
            "hidden_size": QWEN2[size][0],
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
        },
    }


# id on the hub -> tensors, config.json, family of the tokenizer and processor files, parameters
# that the hub shows
PUBLISHED: dict[str, tuple[Shapes, dict[str, Any], str, float]] = {
    "LLaVA-Video-7B-Qwen2": (original_llava("7b"), llava_config("7b", True), "llava_video", 8.03e9),
    "LLaVA-Video-72B-Qwen2": (original_llava("72b"), llava_config("72b", True), "llava_video", 73.2e9),
    "llava-onevision-qwen2-0.5b-ov": (original_llava("0.5b"), llava_config("0.5b", False), "llava_onevision", 0.894e9),
    "llava-onevision-qwen2-7b-ov": (original_llava("7b"), llava_config("7b", False), "llava_onevision", 8.03e9),
    "llava-onevision-qwen2-7b-ov-hf": (hf_llava("7b"), hf_llava_config("7b"), "llava_onevision", 8.03e9),
    "Qwen2-VL-7B-Instruct": (qwen2_vl("7b"), qwen2_vl_config("7b"), "qwen2_vl", 8.29e9),
    "SmolVLM2-500M-Video-Instruct": (smolvlm(), smolvlm_config(), "smolvlm", 0.507e9),
}

# As the hub's generation_config.json of LLaVA-Video-7B-Qwen2 has it.
GENERATION = {
    "bos_token_id": 151643,
    "do_sample": True,
    "eos_token_id": [151645, 151643],
    "pad_token_id": 151643,
    "repetition_penalty": 1.05,
    "temperature": 0.7,
    "top_k": 20,
    "top_p": 0.8,
}


def build(folder: Path, name: str, *, changed: Shapes | None = None, shards: int | None = None) -> Path:
    """The folder of a published checkpoint. ``changed`` replaces its tensors, ``shards`` splits
    them."""
    shapes, config, family, _ = PUBLISHED[name]
    target = folder / name
    shards = shards or (38 if "72B" in name else 4)
    _, processor = tiny_model(family)
    if family == "smolvlm":
        processor.image_seq_len = 64  # as its processor_config.json says
    if "LlavaQwenForCausalLM" in config["architectures"]:
        processor.tokenizer.save_pretrained(target)
    else:
        processor.save_pretrained(target)
    (target / "config.json").write_text(json.dumps(config))
    (target / "generation_config.json").write_text(json.dumps(GENERATION))
    weight_map: dict[str, str] = {}
    for number, part in enumerate(_split(shapes if changed is None else changed, shards), start=1):
        file = f"model-{number:05}-of-{shards:05}.safetensors"
        write_sparse(target / file, part)
        weight_map |= dict.fromkeys(part, file)
    (target / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return target


def _split(shapes: Shapes, parts: int) -> Iterator[Shapes]:
    names = list(shapes)
    for number in range(parts):
        yield {name: shapes[name] for name in names[number::parts]}


def write_sparse(file: Path, shapes: Shapes) -> None:
    """A bfloat16 safetensors file: its header, and a hole of the right length instead of the
    values."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        out.truncate(8 + len(text) + end)
