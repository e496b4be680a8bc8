"""LLaVA-Video and LLaVA-OneVision: SigLIP frames, bilinear pooling, newline tokens, ChatML.

Sources: arXiv 2410.02713 (LLaVA-Video: newline layouts, time instruction), arXiv 2408.03326
(LLaVA-OneVision: images).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from transformers import AutoProcessor, LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

from sttm_lmms.config import check_choice
from sttm_lmms.errors import UnsupportedModelError
from sttm_lmms.families import lmms_lab
from sttm_lmms.families.assemble import (
    Segment,
    VisualTokens,
    assemble,
    check_visuals,
    content_parts,
    device_of,
)
from sttm_lmms.families.base import Family, frame_pixels, runs
from sttm_lmms.families.checkpoint import load_model, read_json
from sttm_lmms.families.template import numbered, render
from sttm_lmms.types import Message, PreparedInput, VideoSpan, VisionFeatures

if TYPE_CHECKING:
    from sttm_lmms.video import Video, VideoInfo, VideoSettings

NEWLINES = ("grid", "frame", "one_token", "no_token")

# Frames that go through the vision tower at once: bounds its memory, changes nothing else.
_CHUNK = 16


def time_instruction(metadata: Mapping[str, Any]) -> str:
    """LLaVA-Video's sentence about length and times of the frames.

    Args:
        metadata: ``video_time`` in seconds, ``num_frames``, and ``frame_time``: seconds of each
            frame, or the text ``"0.00s,1.00s,..."`` that published feature files hold.
    """
    times = metadata["frame_time"]
    if not isinstance(times, str):
        times = ",".join(f"{t:.2f}s" for t in times)
    return (
        f"The video lasts for {float(metadata['video_time']):.2f} seconds, and {metadata['num_frames']} frames are "
        f"uniformly sampled from it. These frames are located at {times}. "
        "Please answer the following questions related to this video."
    )


def chatml_prompt(
    processor: Any, messages: Sequence[Message], instructions: Mapping[int, str] | None = None
) -> list[Segment]:
    """The prompt that LLaVA-Video and LLaVA-OneVision were trained with, with the number of a
    visual where it stands.

    The template is :data:`~sttm_lmms.families.lmms_lab.CHAT_TEMPLATE`, whatever the checkpoint's
    processor has.

    Args:
        instructions: sentence that follows the n-th visual, on a line of its own.
    """
    pieces = render(
        processor,
        _with_instructions(messages, instructions or {}),
        chat_template=lmms_lab.CHAT_TEMPLATE,
        end_of_turn=lmms_lab.END_OF_TURN,
    )
    return numbered(pieces)


def _with_instructions(messages: Sequence[Message], instructions: Mapping[int, str]) -> list[Message]:
    number = 0
    found: list[Message] = []
    for message in messages:
        parts: list[Mapping[str, Any]] = []
        for part in content_parts(message):
            if parts and parts[-1].get("instruction") and part["type"] == "text":
                part = {**part, "text": "\n" + part["text"]}  # the template has no newline between two texts
            parts.append(part)
            if part["type"] != "text":
                if number in instructions:
                    parts.append({"type": "text", "text": instructions[number], "instruction": True})
                number += 1
        found.append({**message, "content": parts})
    return found


def newline_layout(pooled: torch.Tensor, newline: torch.Tensor, mode: str) -> torch.Tensor:
    """Flatten a video's tokens and put the newline embedding where the mode wants it.

    Args:
        pooled: ``[T, H, W, C]``.
        newline: ``[C]``.
        mode: ``grid`` (after each row), ``frame``, ``one_token`` (at the very end) or ``no_token``.

    Returns:
        ``[N, C]`` with N = T*H*W and T*H, T, 1 or 0 newlines more.
    """
    t, h, w, c = pooled.shape
    newline = newline.to(pooled)
    if mode == "grid":
        return torch.cat([pooled, newline.expand(t, h, 1, c)], dim=2).reshape(-1, c)
    if mode == "frame":
        return torch.cat([pooled.reshape(t, h * w, c), newline.expand(t, 1, c)], dim=1).reshape(-1, c)
    flat = pooled.reshape(-1, c)
    return torch.cat([flat, newline[None]]) if mode == "one_token" else flat


class LlavaFamily(Family):
    """What LLaVA-Video and LLaVA-OneVision share: all but the defaults of newline and time
    instruction."""

    architectures: ClassVar[Mapping[str, str]] = {
        lmms_lab.ARCHITECTURE: "original",
        "LlavaOnevisionForConditionalGeneration": "hf",
    }
    model_types: ClassVar[tuple[str, ...]] = ("llava_onevision",)
    newlines: ClassVar[bool] = True
    poolable: ClassVar[bool] = True
    default_newline: ClassVar[str]
    default_time_instruction: ClassVar[bool]
    model_sampling = "uniform_fps"

    def fits(self, architecture: str, config: Mapping[str, Any], name: str) -> bool:
        """LLaVA-Video and OneVision are one architecture; converted checkpoints may have nothing
        but their name."""
        newline = config.get("mm_newline_position")
        video = config.get("add_time_instruction") or newline == "grid"
        if newline is None and not video:
            lowered = name.lower().replace("_", "-")
            video = lowered.rfind("llava-video") > lowered.rfind("onevision")
        return architecture in self.architectures and bool(video) == self.default_time_instruction

    def load_model(self, path: Path, *, with_decoder: bool = True, **kwargs: Any) -> nn.Module:
        """As of :class:`Family`; ``with_decoder=False`` leaves out the decoder's layers and the
        output head, of which nothing is read: what is left sees, embeds and merges."""
        config = read_json(path / "config.json")
        if lmms_lab.ARCHITECTURE in (config.get("architectures") or ()):
            model = lmms_lab.load(path, config=config, with_decoder=with_decoder, **kwargs)
        elif with_decoder:
            model = load_model(LlavaOnevisionForConditionalGeneration, path, **kwargs)
        else:
            short = lmms_lab.without_layers(LlavaOnevisionConfig.from_pretrained(path))
            model = load_model(LlavaOnevisionForConditionalGeneration, path, config=short, checked=True, **kwargs)
        if not with_decoder:
            model.lm_head.to("meta")
        for field, default in (
            ("mm_newline_position", self.default_newline),
            ("add_time_instruction", self.default_time_instruction),
        ):
            if getattr(model.config, field, None) is None:
                setattr(model.config, field, default)
        return model

    def load_processor(self, path: Path, model: Any) -> Any:
        config: Any = model.config
        if lmms_lab.ARCHITECTURE in (read_json(path / "config.json").get("architectures") or ()):
            processor = lmms_lab.load_processor(path, config)
            _stop_at(model, processor.tokenizer.convert_tokens_to_ids("<|im_end|>"))
        else:
            processor = AutoProcessor.from_pretrained(path)
        config.image_token_index, config.video_token_index = processor.image_token_id, processor.video_token_id
        return processor

    def penalises_prompt(self) -> bool:
        """No: the published pipeline generates from embeddings alone, so that no penalty ever saw a
        prompt."""
        return False

    def sample(self, info: VideoInfo, settings: VideoSettings) -> list[int]:
        """Frames at ``settings.fps``, evenly thinned out to ``max_frames``."""
        from sttm_lmms.video import sample_uniform_fps

        return sample_uniform_fps(info, settings.fps, settings.max_frames)

    def feature_shape(self, config: Any, info: VideoInfo, settings: VideoSettings) -> tuple[int, ...]:
        """``(T, P, C_v)``."""
        tower = config.vision_config
        patches = (tower.image_size // tower.patch_size) ** 2
        return len(self.sample(info, settings)), patches, tower.hidden_size

    @torch.no_grad()
    def vision_features(
        self, model: Any, processor: Any, visual: Any, chunks: Iterable[Any] | None = None
    ) -> VisionFeatures:
        """Tower output ``[T, P, C_v]``, before the projector.

        An image gives ``[1 + tiles + 1, P, C_v]``: the whole image, its any-resolution tiles, and
        the image padded to a square, which is what stands for it when a prompt holds several
        images.
        """
        if hasattr(visual, "frames"):
            return self._video_features(model, visual, self.chunks(processor, visual) if chunks is None else chunks)
        image = visual.convert("RGB")
        single = processor.image_processor(images=[image], return_tensors="pt")
        several = processor.image_processor(images=[[image, image]], return_tensors="pt")
        tiles = torch.cat([single["pixel_values"][0], several["pixel_values"][0][:1]])
        return VisionFeatures(
            run_vision_tower(model, tiles), "image", {"image_size": [int(side) for side in single["image_sizes"][0]]}
        )

    def chunks(self, processor: Any, video: Video) -> Iterator[torch.Tensor]:
        """Pixels ``[T, 3, S, S]``."""
        return frame_pixels(processor, video, _CHUNK)

    def _video_features(self, model: Any, video: Video, chunks: Iterable[torch.Tensor]) -> VisionFeatures:
        features = [run_vision_tower(model, chunk) for chunk in chunks]
        metadata = {
            "vid": Path(video.path).stem,
            "video_time": float(video.duration),
            "frame_time": ",".join(f"{t:.2f}s" for t in video.timestamps),
            "num_frames": len(video.frames),
        }
        return VisionFeatures(torch.cat(features), "video", metadata)

    @torch.no_grad()
    def project(self, model: Any, features: VisionFeatures) -> VisionFeatures:
        if features.kind != "video" or features.projected:
            return features
        return replace(features, tensor=project_video(model, features.tensor), projected=True)

    def segments(self, processor: Any, messages: Sequence[Message]) -> list[Segment]:
        return chatml_prompt(processor, messages)

    def token_grid(self, config: Any, pixels: tuple[int, int, int]) -> tuple[int, int, int]:
        vision = config.vision_config
        side = math.ceil(vision.image_size // vision.patch_size / 2)
        return pixels[0], side, side

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
        check_visuals(messages, features)
        config: Any = model.config
        mode = self.newline_mode(config, newline, reduced=False) or self.default_newline
        check_choice("newline", mode, NEWLINES)
        timed = getattr(config, "add_time_instruction", None)
        timed = self.default_time_instruction if timed is None else timed
        instructions = {
            number: time_instruction(feature.metadata)
            for number, feature in enumerate(features)
            if timed and feature.kind == "video"
        }
        alone = sum(feature.kind == "image" for feature in features) == 1
        visuals = [
            _video_tokens(model, feature, mode) if feature.kind == "video" else _image_tokens(model, feature, alone)
            for feature in features
        ]
        tail = instructions.get(len(features) - 1)
        sequence = assemble(
            chatml_prompt(processor, messages, instructions),
            visuals,
            processor.tokenizer,
            model.get_input_embeddings(),
            fixed_suffix=f"\n{tail}" if tail else "",
        )
        return PreparedInput(
            input_ids=sequence.input_ids,
            inputs_embeds=sequence.inputs_embeds,
            position_ids=None,
            spans=sequence.spans,
            prefix_length=sequence.prefix_length,
            visual_tokens=sequence.visual_tokens,
        )

    def locate_spans(self, config: Any, input_ids: torch.Tensor, position_ids: torch.Tensor | None) -> list[VideoSpan]:
        """Frames of pooled H x W tokens; the stock class appends one newline token, which stays out
        of the grid."""
        _, side, _ = self.token_grid(config, (1, 0, 0))
        spans = []
        for row, start, length in runs(input_ids == config.video_token_id):
            frames, rest = divmod(length, side * side)
            if side == 1:
                frames, rest = length - 1, 0
            if rest > 1 or not frames:
                raise UnsupportedModelError(
                    f"row {row} has {length} video tokens from position {start} on, which is not a number of "
                    f"{side}x{side} frames with at most one newline token; several videos in one prompt need text "
                    "between them"
                )
            spans.append(VideoSpan(start, (frames, side, side), row))
        return spans


class LlavaVideo(LlavaFamily):
    """LLaVA-Video-7B/72B-Qwen2."""

    name = "llava_video"
    default_newline = "grid"
    default_time_instruction = True


class LlavaOneVision(LlavaFamily):
    """LLaVA-OneVision 0.5B/7B/72B, original and Hugging Face layout."""

    name = "llava_onevision"
    default_newline = "one_token"
    default_time_instruction = False


def _stop_at(model: Any, token_id: int) -> None:
    """Let generation end at this token too: an original configuration may name ``<|endoftext|>``
    alone."""
    known = model.generation_config.eos_token_id
    known = known if isinstance(known, list) else [] if known is None else [known]
    model.generation_config.eos_token_id = [token_id, *(other for other in known if other != token_id)]


def run_vision_tower(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Hidden states ``[N, P, C_v]`` of the layer that the checkpoint uses, for pixels
    ``[N, 3, S, S]``."""
    config: Any = model.config
    tower = model.model.vision_tower
    outputs = [
        tower(chunk.to(device_of(tower), model.dtype), output_hidden_states=True, return_dict=True).hidden_states[
            config.vision_feature_layer
        ]
        for chunk in pixels.split(_CHUNK)
    ]
    hidden = torch.cat(outputs)
    return hidden[:, 1:] if config.vision_feature_select_strategy == "default" else hidden


def project(model: Any, features: torch.Tensor) -> torch.Tensor:
    """Tower output ``[N, P, C_v]`` in the decoder's channels: ``[N, P, C]``."""
    projector = model.model.multi_modal_projector
    return torch.cat([projector(chunk.to(device_of(projector), model.dtype)) for chunk in features.split(_CHUNK)])


def pool(model: Any, projected: torch.Tensor) -> torch.Tensor:
    """Bilinear pooling of projected frames ``[T, P, C]`` to
    ``[T, ceil(side/2), ceil(side/2), C]``."""
    pooled = model.model.apply_pooling(projected)
    side = math.isqrt(pooled.shape[1])
    return pooled.reshape(len(pooled), side, side, -1)


def newline_embedding(model: Any) -> torch.Tensor:
    """``[C]``. Its module's weights may be offloaded: they are fetched as that module's own forward
    would."""
    from accelerate.utils import align_module_device

    with align_module_device(model.model):
        return model.model.image_newline.detach().clone()


def project_video(model: Any, features: torch.Tensor) -> torch.Tensor:
    """A video as ``[T, H, W, C]``, from tower output ``[T, P, C_v]`` or from its pooled form
    ``[T, H, W, C_v]``.

    Chunk by chunk: before pooling, 1,024 frames in a 7B decoder's channels would be 5 GB.
    """
    if features.ndim == 4:
        return project(model, features)
    return torch.cat([pool(model, project(model, chunk)) for chunk in features.split(_CHUNK)])


def _video_tokens(model: Any, feature: VisionFeatures, newline: str) -> VisualTokens:
    pooled = feature.tensor if feature.projected else project_video(model, feature.tensor)
    t, h, w, _ = pooled.shape
    embeds = newline_layout(pooled, newline_embedding(model), newline)
    grid = (t, h, w) if newline in ("one_token", "no_token") else None
    return VisualTokens(embeds, model.config.video_token_id, grid)


def _image_tokens(model: Any, feature: VisionFeatures, alone: bool) -> VisualTokens:
    """A single image with all its tiles, one of several as its padded square: as transformers' own
    processor does."""
    config: Any = model.config
    tiles = feature.tensor[:-1] if alone else feature.tensor[-1:]
    (embeds,), _ = model.model.pack_image_features(
        [project(model, tiles)],
        [feature.metadata["image_size"]],
        image_newline=newline_embedding(model),
        vision_aspect_ratio=config.vision_aspect_ratio,
    )
    return VisualTokens(embeds, config.image_token_id)
