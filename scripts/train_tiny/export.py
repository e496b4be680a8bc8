"""From the trained parts to a checkpoint folder in the original lmms-lab layout."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

from sttm_lmms.families import lmms_lab
from sttm_lmms.testing.export import save_original

from .decoder import decoder_config
from .student import Student
from .vision import IMAGE, vision_config


def as_llava(student: Student) -> LlavaOnevisionForConditionalGeneration:
    """transformers' LLaVA model with the student's weights."""
    text = decoder_config()
    text.bos_token_id, text.eos_token_id = None, student.tokenizer.eos_token_id
    used = len(student.tokenizer)
    config = LlavaOnevisionConfig(
        vision_config=vision_config(),
        text_config=text,
        image_token_index=used,
        video_token_index=used + 1,
        image_grid_pinpoints=[[IMAGE, IMAGE]],
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


def export(student: Student, folder: Path) -> Path:
    """Write the checkpoint: float32 weights, configuration, tokenizer, processor settings."""
    model = as_llava(student)
    save_original(model, lmms_lab.build_processor(student.tokenizer, model.config), folder)
    settings = {
        "image_processor_type": "SiglipImageProcessor",
        "size": {"height": IMAGE, "width": IMAGE},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 3,
        "rescale_factor": 1 / 255,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return folder
