"""Prompts for Qwen2.5-VL and all later families, and what the stock processors make of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from family_helpers import clip, moving_frames
from PIL import Image
from transformers.video_utils import VideoMetadata

QWEN_AND_GLM = ("qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "glm4v", "glm46v", "glm4v_moe")
NEWER = (*QWEN_AND_GLM, "internvl", "smolvlm")
VIDEO, IMAGE = {"type": "video"}, {"type": "image"}
SIZES = {"qwen2_5_vl": (112, 140), "internvl": (32, 32), "smolvlm": (32, 32)}
CASES = {
    "video": [VIDEO, "Why?"],
    "two videos": ["Look: ", VIDEO, VIDEO, "Which?"],
    "image and video": [IMAGE, VIDEO, "Same?"],
    "video and image": [VIDEO, " and ", IMAGE, "Same?"],
    "images and videos": [IMAGE, VIDEO, "then", IMAGE, VIDEO, "Same?"],
    "images": [IMAGE, IMAGE, "Same?"],
}


def stock_runs(name: str, case: str) -> bool:
    """Whether transformers runs such a prompt: it marks GLM's images and videos alike, and takes one of
    the two."""
    return not (name.startswith("glm") and "image" in case and "video" in case)


def user(parts) -> list:
    return [{"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}]


def shown(name: str, parts, frames: int = 6, fps: float = 2.0) -> list:
    """A clip or a picture for each visual part; the second clip is another one of the same size."""
    height, width = SIZES.get(name, (112, 140) if name.startswith("glm") else (128, 160))
    visuals = []
    for number, part in enumerate(p for p in parts if not isinstance(p, str)):
        if part is IMAGE:
            visuals.append(Image.fromarray(moving_frames(3 + number, height, width)[-1]))
            continue
        video = clip(frames, height, width)
        times = [index / fps for index in range(frames)]
        noise = np.random.default_rng(number).integers(0, 256, video.frames.shape, np.uint8)
        turned = np.where(np.arange(frames)[:, None, None, None] % 2, noise, np.roll(video.frames, 5 * number, axis=2))
        visuals.append(replace(video, frames=turned, timestamps=times, fps=fps, sample_fps=fps, duration=frames / fps))
    return visuals


def batch_inputs(processor, prompts: list[tuple[list, list]]) -> dict:
    """What the processor itself makes of ``(parts, visuals)`` prompts, padded on the left."""
    every = [visual for _, visuals in prompts for visual in visuals]
    videos = [visual for visual in every if hasattr(visual, "frames")]
    images = [visual for visual in every if not hasattr(visual, "frames")]
    facts = [
        VideoMetadata(len(v.frames), fps=v.fps, frames_indices=list(v.indices), duration=v.duration) for v in videos
    ]
    texts = [
        processor.apply_chat_template(user(parts), tokenize=False, add_generation_prompt=True, enable_thinking=False)
        for parts, _ in prompts
    ]
    kwargs = {"do_sample_frames": False, "video_metadata": facts}
    if any(maker in type(processor).__name__ for maker in ("Qwen", "Glm")):
        kwargs["do_resize"] = False
    if "Qwen" in type(processor).__name__:
        kwargs["cap_pixels_per_frame"] = False
    processor.tokenizer.padding_side, processor.tokenizer.pad_token = "left", "<|endoftext|>"
    frames = [torch.from_numpy(video.frames.transpose(0, 3, 1, 2)) for video in videos]
    if "SmolVLM" in type(processor).__name__ and images and videos:
        return _mixed_smolvlm(processor, texts, every, facts)
    return processor(
        text=texts,
        **({"images": images} if images else {}),
        **({"videos": frames, "videos_kwargs": kwargs} if videos else {}),
        padding=True,
        return_tensors="pt",
    )


def _mixed_smolvlm(processor, texts, visuals, facts) -> dict:
    """The stock processor loses the images where there are videos: both go by the name of
    ``pixel_values``. So each visual goes through it alone."""
    written, pixels = {"image": [], "video": []}, []
    for visual in visuals:
        if hasattr(visual, "frames"):
            frames = torch.from_numpy(visual.frames.transpose(0, 3, 1, 2))
            batch = processor.video_processor([frames], do_sample_frames=False, return_tensors="pt")
            batch["video_metadata"] = [facts[len(written["video"])]]
            written["video"].append(processor.replace_video_token(batch, 0))
        else:
            batch = processor.image_processor([[visual]], return_row_col_info=True, return_tensors="pt")
            written["image"].append(processor.replace_image_token(batch, 0))
        pixels.append(batch["pixel_values"][0])
    texts, _ = processor.get_text_with_replacements(texts, written["image"], written["video"], [])
    return {**processor.tokenizer(texts, return_tensors="pt"), "pixel_values": torch.cat(pixels)[None]}


def stock_inputs(processor, parts, visuals) -> dict:
    """The same for one prompt."""
    return batch_inputs(processor, [(parts, visuals)])


def generated(model, inputs, steps: int, **kwargs):
    """Greedy ids ``[B, steps]`` and the logits ``[steps, B, V]`` they come from."""
    settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 260, "output_logits": True, **kwargs}
    output = model.generate(**inputs, max_new_tokens=steps, return_dict_in_generate=True, **settings)
    return output.sequences[:, -steps:], torch.stack(output.logits)
