"""What a model family has to provide: loading, seeing and prompting. Merging and running are the same for all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

if TYPE_CHECKING:
    from sttm_lmms.video import Video, VideoSettings

Message = Mapping[str, Any]
"""A chat message: ``{"role": "user", "content": [part, ...]}`` with parts ``{"type": "text", "text": ...}``,
``{"type": "video"}`` and ``{"type": "image"}``. The n-th visual part belongs to the n-th ``VisionFeatures``."""


@dataclass(frozen=True)
class VideoSpan:
    """Where one video's tokens stand in a sequence: ``T*H*W`` contiguous tokens in row-major (t, y, x) order.

    Attributes:
        start: index of the first visual token in its row of ``input_ids`` / ``inputs_embeds``.
        grid: (T, H, W).
        row: batch row.
    """

    start: int
    grid: tuple[int, int, int]
    row: int = 0

    @property
    def length(self) -> int:
        t, h, w = self.grid
        return t * h * w

    @property
    def end(self) -> int:
        return self.start + self.length


@dataclass(frozen=True)
class VisionFeatures:
    """One video (or image) after the vision tower, as it is stored on disk and reused between questions.

    Attributes:
        tensor: LLaVA family: output of the tower before the projector ``[T, P, C_v]``; Qwen2-VL: after the patch
            merger ``[T, H, W, C]``.
        kind: ``"video"`` or ``"image"``.
        metadata: plain values: ``vid, video_time, frame_time, num_frames`` (LLaVA), or
            ``video_sample_fps, video_grid_thw`` (Qwen2-VL). Images: ``image_size`` (height, width), ``image_grid_thw``.
        projected: True if ``tensor`` is ``[T, H, W, C]`` in the decoder's channels already, see :meth:`Family.project`.
    """

    tensor: torch.Tensor
    kind: str = "video"
    metadata: dict[str, Any] = field(default_factory=dict)
    projected: bool = False


@dataclass(frozen=True)
class PreparedInput:
    """A prompt ready for the decoder: one sequence of L tokens, visual embeddings in place.

    Attributes:
        input_ids: ``[1, L]`` int64; visual tokens hold the checkpoint's video or image token id.
        inputs_embeds: ``[1, L, C]``.
        position_ids: ``[3, 1, L]`` int64 for M-RoPE decoders, None where positions are 0..L-1.
        spans: the video spans that may be reduced. Newline tokens are outside of every span, except in the newline
            modes ``grid`` and ``frame``, whose videos have no span (they are baselines and are not reduced).
        prefix_length: tokens that do not depend on the question: everything up to the last visual token and, where
            the checkpoint uses one, the time instruction after it.
        visual_tokens: all visual tokens of the sequence, newlines included.
    """

    input_ids: torch.Tensor
    inputs_embeds: torch.Tensor
    position_ids: torch.Tensor | None
    spans: tuple[VideoSpan, ...]
    prefix_length: int
    visual_tokens: int


class Family(ABC):
    """One model family. Instances hold no state; a loaded model is always passed in."""

    name: ClassVar[str]
    """``llava_video``, ``llava_onevision`` or ``qwen2_vl``."""

    @abstractmethod
    def load_model(self, path: Path, **kwargs: Any) -> nn.Module:
        """Model (eval mode) from a local folder of any layout the family knows; ``kwargs`` as ``from_pretrained``.

        Raises:
            CheckpointError: a missing, unexpected or mis-shaped tensor, or a layout that is not known.
        """

    @abstractmethod
    def load_processor(self, path: Path, model: nn.Module) -> Any:
        """transformers' processor of a local folder; ``model.config`` takes over the ids of its visual tokens."""

    def load(
        self, path: Path, *, dtype: Any, device_map: Any, attn_implementation: str | None, **kwargs: Any
    ) -> tuple[nn.Module, Any]:
        """Model (eval mode) and processor from a local folder of any layout the family knows."""
        model = self.load_model(
            path, dtype=dtype, device_map=device_map, attn_implementation=attn_implementation, **kwargs
        )
        return model, self.load_processor(path, model)

    @abstractmethod
    def read_video(self, path: str | Path, settings: VideoSettings) -> Video:
        """Sample and decode the frames that this family would see. Raises ``VideoError``."""

    @abstractmethod
    def vision_features(self, model: nn.Module, processor: Any, visual: Any) -> VisionFeatures:
        """Run the vision tower on a :class:`Video` or on a PIL image."""

    def project(self, model: nn.Module, features: VisionFeatures) -> VisionFeatures:
        """What of :meth:`prepare` depends on the visual alone, so that its questions do not pay for it again."""
        return features

    @abstractmethod
    def prepare(
        self,
        model: nn.Module,
        processor: Any,
        messages: Sequence[Message],
        features: Sequence[VisionFeatures],
        *,
        newline: str | None = None,
    ) -> PreparedInput:
        """Chat template, token ids, visual embeddings, positions and spans of one conversation.

        The generation prompt (``<|im_start|>assistant\\n``) is added unless the last message is the assistant's.
        """

    def decoder(self, model: nn.Module) -> nn.Module:
        """The text decoder: the module that has ``layers`` and ``rotary_emb``."""
        from sttm_lmms.runtime.decoder import find_decoder

        return find_decoder(model)

    def tower(self, model: Any) -> nn.Module:
        """The vision tower, so that its time can be told from that of preprocessing."""
        return getattr(model.model, "vision_tower", None) or model.model.visual
