"""From the trained parts to checkpoint folders of the published layouts, and back to a decoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2ForCausalLM,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
)
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from sttm_lmms import load_pretrained
from sttm_lmms.families import lmms_lab
from sttm_lmms.testing.export import save_original
from sttm_lmms.testing.tiny import QWEN_CHAT_TEMPLATE

from . import pairs, vision
from .decoder import SECTIONS, THETA, decoder_config
from .shapes import QWEN2_VL
from .student import Student


def as_llava(student: Student) -> LlavaOnevisionForConditionalGeneration:
    """transformers' LLaVA model with the student's weights."""
    text = decoder_config()
    text.bos_token_id, text.eos_token_id = None, student.tokenizer.eos_token_id
    used, image = len(student.tokenizer), student.shape.grid * vision.CELL
    config = LlavaOnevisionConfig(
        vision_config=vision.vision_config(student.shape.grid),
        text_config=text,
        image_token_index=used,
        video_token_index=used + 1,
        image_grid_pinpoints=[[image, image]],
        tie_word_embeddings=False,
        mm_newline_position="no_token",
        add_time_instruction=False,
    )
    model = LlavaOnevisionForConditionalGeneration(config).eval()
    inner = model.model
    tower = getattr(inner.vision_tower, "vision_model", inner.vision_tower)
    tower.load_state_dict(student.vision.inner.state_dict())
    inner.multi_modal_projector.linear_1.load_state_dict(student.vision.projector[0].state_dict())
    inner.multi_modal_projector.linear_2.load_state_dict(student.vision.projector[2].state_dict())
    inner.language_model.load_state_dict(student.decoder.model.state_dict())
    model.lm_head.load_state_dict(student.decoder.lm_head.state_dict())
    return model


def as_qwen2_vl(student: Student) -> Qwen2VLForConditionalGeneration:
    """transformers' Qwen2-VL model with the student's weights."""
    ids = student.tokenizer.convert_tokens_to_ids
    text = decoder_config().to_dict()
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": THETA, "mrope_section": list(SECTIONS)}
    text |= {"bos_token_id": None, "eos_token_id": student.tokenizer.eos_token_id}
    config = Qwen2VLConfig(
        text_config={key: value for key, value in text.items() if key != "model_type"},
        vision_config=pairs.vision_config().to_dict(),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        tie_word_embeddings=False,
    )
    model = Qwen2VLForConditionalGeneration(config).eval()
    model.model.visual.load_state_dict(student.vision.tower.state_dict())
    model.model.language_model.load_state_dict(student.decoder.model.state_dict())
    model.lm_head.load_state_dict(student.decoder.lm_head.state_dict())
    model.generation_config.eos_token_id = student.tokenizer.eos_token_id
    return model


def export(student: Student, folder: Path) -> Path:
    """Write the checkpoint: float32 weights, configuration, tokenizer, processor settings."""
    if student.shape.family == QWEN2_VL.family:
        as_qwen2_vl(student).save_pretrained(folder)
        Qwen2VLProcessor(
            image_processor=Qwen2VLImageProcessor(),
            video_processor=Qwen2VLVideoProcessor(),
            tokenizer=student.tokenizer,
            chat_template=QWEN_CHAT_TEMPLATE,
        ).save_pretrained(folder)
        return folder
    model = as_llava(student)
    save_original(model, lmms_lab.build_processor(student.tokenizer, model.config), folder)
    image = student.shape.grid * vision.CELL
    settings = {
        "image_processor_type": "SiglipImageProcessor",
        "size": {"height": image, "width": image},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 3,
        "rescale_factor": 1 / 255,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return folder


def load_decoder(folder: Path) -> tuple[Qwen2ForCausalLM, Any]:
    """The decoder of an exported LLaVA-Video-shaped checkpoint, and its tokenizer."""
    model, processor = load_pretrained(folder, device_map="cpu")
    decoder = Qwen2ForCausalLM(decoder_config())
    decoder.model.load_state_dict(model.model.language_model.state_dict())
    decoder.lm_head.load_state_dict(model.lm_head.state_dict())
    return decoder, processor.tokenizer
