"""What a model family has to provide: loading, seeing and prompting. Merging and running are the same for all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from sttm_lmms.types import Message, PreparedInput, VisionFeatures

if TYPE_CHECKING:
    from sttm_lmms.video import Video, VideoSettings


class Family(ABC):
    """One model family. Instances hold no state; a loaded model is always passed in."""

    name: ClassVar[str]
    """``llava_video``, ``llava_onevision`` or ``qwen2_vl``."""

    model_sampling: ClassVar[str] = "model"
    """What ``VideoSettings.sampling="model"`` is here: ``"uniform_fps"`` where the model's own rule is that one."""

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

    def penalises_prompt(self) -> bool:
        """Whether repetition penalties count the prompt's tokens, as they do in the family's published pipeline."""
        return True

    def decoder(self, model: nn.Module) -> nn.Module:
        """The text decoder: the module that has ``layers`` and ``rotary_emb``."""
        from sttm_lmms.runtime.decoder import find_decoder

        return find_decoder(model)

    def tower(self, model: Any) -> nn.Module:
        """The vision tower, so that its time can be told from that of preprocessing."""
        return getattr(model.model, "vision_tower", None) or model.model.visual
