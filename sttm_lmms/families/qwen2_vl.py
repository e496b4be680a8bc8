"""Qwen2-VL: frames by qwen-vl-utils, one token per 28x28 pixels of two frames, multimodal rotary positions.

Source: arXiv 2409.12191, sections 2.1 (M-RoPE, unified image and video understanding).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from transformers import AutoProcessor, Qwen2VLForConditionalGeneration

from sttm_lmms.config import check_choice
from sttm_lmms.errors import VideoError
from sttm_lmms.families.assemble import Segment, VisualTokens, assemble, check_visuals, content_parts, device_of
from sttm_lmms.families.base import Family
from sttm_lmms.families.checkpoint import load_model
from sttm_lmms.types import Message, PreparedInput, VisionFeatures

if TYPE_CHECKING:
    from sttm_lmms.video import Video, VideoInfo, VideoSettings

VISION_END = "<|vision_end|>"

# Frames that go through the vision tower at once (its attention never crosses a pair of frames).
_CHUNK = 32

# A token's side in pixels: 2x2 patches of 14.
_SIDE = 28


def mrope_positions(length: int, visuals: Sequence[tuple[int, tuple[int, int, int]]]) -> torch.Tensor:
    """Multimodal rotary positions of one sequence.

    Text counts up on all three axes; a visual's token (t, y, x) stands at the next free position plus (t, y, x); what
    follows starts after the largest position so far, as the checkpoints were trained. (transformers 5.17 to 5.23 go
    on after the larger of height and width only, so that text overlaps a video of more steps than that.)

    Args:
        length: tokens of the sequence.
        visuals: (start, (T, H, W)) of each visual, in order; T*H*W tokens each.

    Returns:
        ``[3, 1, length]`` int64: axes (t, y, x).
    """
    pieces: list[torch.Tensor] = []
    done, position = 0, 0
    for start, (t, h, w) in visuals:
        pieces.append(torch.arange(position, position + start - done).expand(3, -1))
        position += start - done
        cells = torch.meshgrid(torch.arange(t), torch.arange(h), torch.arange(w), indexing="ij")
        pieces.append(torch.stack(cells).reshape(3, -1) + position)
        position += max(t, h, w)
        done = start + t * h * w
    pieces.append(torch.arange(position, position + length - done).expand(3, -1))
    return torch.cat(pieces, dim=1)[:, None]


def frame_numbers(info: VideoInfo, settings: VideoSettings) -> list[int]:
    """Numbers of the frames that are shown, by the rule that ``settings.sampling`` names.

    With ``uniform_fps`` the last frame is repeated where the rule gives an odd number, so that all frames have a pair.
    """
    from sttm_lmms.video import sample_uniform_fps

    if settings.sampling == "model":
        return sample_frames(info.total_frames, info.fps, settings)
    numbers = sample_uniform_fps(info, settings.fps, settings.max_frames)
    return numbers + numbers[-1:] * (len(numbers) % 2)


def sample_frames(total_frames: int, video_fps: float, settings: VideoSettings) -> list[int]:
    """Indices of an even number of frames, evenly spread from the first to the last, as qwen-vl-utils takes them.

    A video of one frame gives that frame (the processor repeats it to fill a pair).
    """
    from qwen_vl_utils.vision_process import smart_nframes

    if total_frames < 2:
        return list(range(total_frames))
    wanted = {"fps": settings.fps, "max_frames": max(2, settings.max_frames)}
    count = smart_nframes(wanted, total_frames=total_frames, video_fps=video_fps)
    return torch.linspace(0, total_frames - 1, count).round().long().tolist()


def frame_size(height: int, width: int, frames: int, settings: VideoSettings) -> tuple[int, int]:
    """Height and width in pixels to which qwen-vl-utils resizes the frames of a video."""
    from qwen_vl_utils import vision_process as qwen

    default = 128 * _SIDE**2
    low = settings.min_pixels or min(default, settings.max_pixels or default)
    total = qwen.MODEL_SEQ_LEN * _SIDE**2 * 0.9
    high = max(min(768 * _SIDE**2, total / frames * qwen.FRAME_FACTOR), int(low * 1.05))
    return qwen.smart_resize(height, width, _SIDE, min_pixels=low, max_pixels=min(high, settings.max_pixels or high))


class Qwen2VL(Family):
    """Qwen2-VL-2B/7B/72B-Instruct."""

    name = "qwen2_vl"

    def load_model(self, path: Path, **kwargs: Any) -> nn.Module:
        return load_model(Qwen2VLForConditionalGeneration, path, **kwargs)

    def load_processor(self, path: Path, model: Any) -> Any:
        return AutoProcessor.from_pretrained(path)

    def read_video(self, path: str | Path, settings: VideoSettings) -> Video:
        """An even number of frames at ``settings.fps``, at most ``max_frames``, resized as qwen-vl-utils does."""
        from sttm_lmms.video import probe, read_frames

        info = probe(path, settings.backend)
        video = read_frames(info, frame_numbers(info, settings), settings.backend)
        try:
            frames, height, width, _ = video.frames.shape
            size = frame_size(height, width, frames, settings)
        except ValueError as error:
            raise VideoError(path, str(error), "crop the video") from error
        return replace(video, frames=_resize(video.frames, size))

    @torch.no_grad()
    def vision_features(self, model: Any, processor: Any, visual: Any) -> VisionFeatures:
        """Tokens after the patch merger, ``[T, H, W, C]``; an image has T = 1."""
        if not hasattr(visual, "frames"):
            batch = processor.image_processor(images=[visual.convert("RGB")], return_tensors="pt")
            grid = batch["image_grid_thw"]
            return VisionFeatures(
                run_vision_tower(model, batch["pixel_values"], grid), "image", {"image_grid_thw": grid[0].tolist()}
            )
        chunks, grid = [], [0, 0, 0]
        unfit = any(side % _SIDE for side in visual.frames.shape[1:3])  # frames that did not come from read_video
        for start in range(0, len(visual.frames), _CHUNK):
            frames = torch.from_numpy(visual.frames[start : start + _CHUNK]).permute(0, 3, 1, 2)
            batch = processor.video_processor(
                videos=[frames],
                do_resize=unfit,
                do_sample_frames=False,
                cap_pixels_per_frame=False,
                return_tensors="pt",
            )
            chunks.append(run_vision_tower(model, batch["pixel_values_videos"], batch["video_grid_thw"]))
            t, *grid[1:] = batch["video_grid_thw"][0].tolist()
            grid[0] += t
        metadata = {"video_sample_fps": float(visual.sample_fps), "video_grid_thw": grid}
        return VisionFeatures(torch.cat(chunks), "video", metadata)

    @torch.no_grad()
    def prepare(
        self,
        model: Any,
        processor: Any,
        messages: Sequence[Message],
        features: Sequence[VisionFeatures],
        *,
        newline: str | None = None,
    ) -> PreparedInput:
        """See :meth:`Family.prepare`. Qwen2-VL has no newline tokens; only ``no_token`` is accepted."""
        check_visuals(messages, features)
        if newline is not None:
            check_choice("newline", newline, ("no_token",))
        config: Any = model.config
        ids = {"video": config.video_token_id, "image": config.image_token_id}
        visuals = [
            VisualTokens(
                feature.tensor.flatten(0, 2).to(model.dtype),
                ids[feature.kind],
                _grid(feature) if feature.kind == "video" else None,
            )
            for feature in features
        ]
        sequence = assemble(
            render(processor, messages),
            visuals,
            processor.tokenizer,
            model.get_input_embeddings(),
            stable_tail=VISION_END,
        )
        grids = [_grid(feature) for feature in features]
        positions = mrope_positions(sequence.input_ids.shape[1], list(zip(sequence.starts, grids, strict=True)))
        return PreparedInput(
            input_ids=sequence.input_ids,
            inputs_embeds=sequence.inputs_embeds,
            position_ids=positions.to(sequence.input_ids.device),
            spans=sequence.spans,
            prefix_length=sequence.prefix_length,
            visual_tokens=sequence.visual_tokens,
        )


def run_vision_tower(model: Any, patches: torch.Tensor, grid_thw: torch.Tensor) -> torch.Tensor:
    """Run the vision tower on the patches of one video or image.

    Args:
        patches: ``[t*h*w, 3*2*14*14]``, as transformers' processors give them.
        grid_thw: ``[1, 3]``: the grid in patches, before 2x2 of them become one token.

    Returns:
        ``[t, h/2, w/2, C]``.
    """
    side = model.config.vision_config.spatial_merge_size
    t, h, w = grid_thw[0].tolist()
    device = device_of(model.model.visual)
    (tokens,) = model.model.get_video_features(patches.to(device), grid_thw.to(device)).pooler_output
    return tokens.reshape(t, h // side, w // side, -1)


def render(processor: Any, messages: Sequence[Message]) -> list[Segment]:
    """The processor's chat template, cut at the visuals: text with the number of a visual where it stands.

    Raises:
        ValueError: a text holds a visual placeholder token of its own.
    """
    plain = [
        {
            "role": message["role"],
            "content": [
                {"type": "text", "text": part["text"]} if part["type"] == "text" else {"type": part["type"]}
                for part in content_parts(message)
            ],
        }
        for message in messages
    ]
    open_end = bool(plain) and plain[-1]["role"] == "assistant"
    text = processor.apply_chat_template(
        plain, tokenize=False, add_generation_prompt=not open_end, continue_final_message=open_end
    )
    pads = f"{re.escape(processor.video_token)}|{re.escape(processor.image_token)}"
    pieces = re.split(pads, text)
    wanted = sum(part["type"] != "text" for message in messages for part in content_parts(message))
    if len(pieces) - 1 != wanted:
        raise ValueError(
            f"the prompt holds {len(pieces) - 1} of the placeholders {processor.video_token} and "
            f"{processor.image_token}, but {wanted} visuals; remove them from the text"
        )
    segments: list[Segment] = [pieces[0]]
    for number, piece in enumerate(pieces[1:]):
        segments += [number, piece]
    return [segment for segment in segments if segment != ""]


def _grid(feature: VisionFeatures) -> tuple[int, int, int]:
    t, h, w, _ = feature.tensor.shape
    return t, h, w


def _resize(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """``[T, H, W, 3]`` uint8 to another (height, width), bicubic with anti-aliasing."""
    from torchvision.transforms.functional import InterpolationMode, resize

    if frames.shape[1:3] == size:
        return frames
    mode = InterpolationMode.BICUBIC
    chunks = [
        resize(torch.from_numpy(frames[i : i + _CHUNK]).permute(0, 3, 1, 2), list(size), mode, antialias=True)
        for i in range(0, len(frames), _CHUNK)
    ]
    return torch.cat(chunks).permute(0, 2, 3, 1).contiguous().numpy()
