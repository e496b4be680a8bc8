"""What a model family has to provide: loading, seeing and prompting. Merging and running are the
same for all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn

from sttm_lmms.decoder import find_decoder
from sttm_lmms.types import Message, PreparedInput, VideoSpan, VisionFeatures

if TYPE_CHECKING:
    from sttm_lmms.families.assemble import Segment
    from sttm_lmms.video import Video, VideoInfo, VideoSettings
    from sttm_lmms.video.pictures import Resize


class Family(ABC):
    """One model family. Instances hold no state; a loaded model is always passed in."""

    name: ClassVar[str]
    """As in ``--model sttm_NAME``."""
    architectures: ClassVar[Mapping[str, str]]
    """Architecture in ``config.json`` -> layout of the checkpoint: ``"hf"`` for a class of
    transformers, which a model of that layout is an instance of, or ``"original"``."""
    model_types: ClassVar[tuple[str, ...]]
    """``model_type`` of the configurations of transformers' classes."""
    start_layer: ClassVar[int] = 2
    """Decoder layer in front of which commands and wrappers merge where nobody says another; 2 is
    the paper's."""
    mrope: ClassVar[bool] = False
    """Whether its decoder rotates by (t, h, w) positions."""
    pixel_limits: ClassVar[bool] = False
    """Whether ``min_pixels`` and ``max_pixels`` bound the size of its frames."""
    newlines: ClassVar[bool] = False
    """Whether it has newline tokens, and so modes of them."""
    default_newline: ClassVar[str | None] = None
    """The mode of checkpoints that do not say theirs."""
    poolable: ClassVar[bool] = False
    """Whether its features may be stored in the form ``"pooled"``."""

    def fits(self, architecture: str, config: Mapping[str, Any], name: str) -> bool:
        """Whether a checkpoint is of this family.

        Args:
            architecture: one that ``config.json`` names.
            config: the content of ``config.json``.
            name: folder or hub id, for files that say nothing else.
        """
        return architecture in self.architectures

    model_sampling: ClassVar[str] = "model"
    """What ``VideoSettings.sampling="model"`` is here: ``"uniform_fps"`` where the model's own rule
    is that one."""

    def method_defaults(self, method: type) -> dict[str, Any]:
        """Settings that commands and wrappers give a method class where nobody says others: the
        family's own start layer in place of the paper's."""
        layer = getattr(method, "start_layer", None)
        return {"start_layer": self.start_layer} if layer == Family.start_layer else {}

    def newline_mode(self, config: Any, asked: str | None, *, reduced: bool) -> str | None:
        """The newline mode in force; None for families without newline tokens.

        Args:
            config: the loaded model's config.
            asked: what the user wants; None is the checkpoint's own for the baseline, and
                ``no_token`` (the published setting) where tokens are reduced.
            reduced: whether a method reduces tokens.
        """
        if not self.newlines:
            return None
        return (
            asked or ("no_token" if reduced else getattr(config, "mm_newline_position", None)) or self.default_newline
        )

    @abstractmethod
    def load_model(self, path: Path, **kwargs: Any) -> nn.Module:
        """Model (eval mode) from a local folder of any layout the family knows; ``kwargs`` as
        ``from_pretrained``.

        Raises:
            CheckpointError: a missing, unexpected or mis-shaped tensor, or a layout that is not
                known.
        """

    @abstractmethod
    def load_processor(self, path: Path, model: nn.Module) -> Any:
        """transformers' processor of a local folder; ``model.config`` takes over the ids of its
        visual tokens."""

    def load(
        self, path: Path, *, dtype: Any, device_map: Any, attn_implementation: str | None, **kwargs: Any
    ) -> tuple[nn.Module, Any]:
        """Model (eval mode) and processor from a local folder of any layout the family knows."""
        model = self.load_model(
            path, dtype=dtype, device_map=device_map, attn_implementation=attn_implementation, **kwargs
        )
        return model, self.load_processor(path, model)

    @abstractmethod
    def sample(self, info: VideoInfo, settings: VideoSettings) -> list[int]:
        """Numbers of the frames of a file that this family would see."""

    def resize(
        self, height: int, width: int, frames: int, settings: VideoSettings, processor: Any = None
    ) -> Resize | None:
        """How this many frames of this size are made as small as this family sees them; None if
        they stay.

        With a processor it is the processor's own resizing, which then has nothing left to do.

        Raises:
            ValueError: the family cannot see frames of this size.
        """
        return None if processor is None else partial(processor_resize, processor)

    def read_video(self, source: Any, settings: VideoSettings, processor: Any = None) -> Video:
        """The frames that this family would see.

        Args:
            source: a file or its URL, of which frames are sampled; or the frames themselves, all of
                which are seen and count as ``settings.fps`` a second: a list of PIL images, or
                uint8 ``[T, H, W, 3]`` or ``[T, 3, H, W]``; or a folder or list of picture files, of
                which at most ``settings.max_frames`` are taken, evenly spread.
            processor: frames are made small as they are read where it is given; else they have
                their own size, unless that depends on the settings.

        Raises:
            VideoError: the file cannot be read, or what was given cannot be frames of a video.
        """
        from sttm_lmms.video import probe, read_frames, video_of_frames
        from sttm_lmms.video.remote import local_file
        from sttm_lmms.video.sampling import later

        def small(frames: int, height: int, width: int) -> Resize | None:
            return self.resize(height, width, frames, settings, processor)

        source = local_file(source) if isinstance(source, (str, Path)) else source
        if not isinstance(source, (str, Path)) or Path(source).is_dir():
            return video_of_frames(source, settings.fps, max_frames=settings.max_frames, resize=small)
        info = probe(source, settings.backend, timeout=settings.timeout)
        numbers = later(self.sample(info, settings), settings.phase, info.total_frames - 1)
        resize = partial(small, len(numbers))
        return read_frames(info, numbers, settings.backend, resize=resize, timeout=settings.timeout)

    @abstractmethod
    def feature_shape(self, config: Any, info: VideoInfo, settings: VideoSettings) -> tuple[int, ...]:
        """Shape of the vision features of a file, from the loaded model's ``config``; nothing is
        decoded."""

    @abstractmethod
    def chunks(self, processor: Any, video: Video) -> Iterator[Any]:
        """What the processor makes of a video, a few frames at a time. Needs no model, so it may
        run in a thread."""

    @abstractmethod
    def vision_features(
        self, model: nn.Module, processor: Any, visual: Any, chunks: Iterable[Any] | None = None
    ) -> VisionFeatures:
        """Run the vision tower on a :class:`Video` or a PIL image.

        Args:
            chunks: of the video, where they are there already; see :meth:`chunks`.
        """

    def project(self, model: nn.Module, features: VisionFeatures) -> VisionFeatures:
        """What of :meth:`prepare` depends on the visual alone, so that its questions do not pay for
        it again."""
        return features

    def segments(self, processor: Any, messages: Sequence[Message]) -> list[Segment]:
        """The prompt by the family's template: texts, and the number of a visual where it stands."""
        raise NotImplementedError

    def token_grid(self, config: Any, pixels: tuple[int, int, int]) -> tuple[int, int, int]:
        """(T, H, W) in tokens of a video of (T, H, W) frames and pixels."""
        raise NotImplementedError

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

    @abstractmethod
    def locate_spans(self, config: Any, input_ids: torch.Tensor, position_ids: torch.Tensor | None) -> list[VideoSpan]:
        """The videos in the inputs of a stock forward pass.

        Args:
            config: the whole model's config.
            input_ids: ``[B, L]``.
            position_ids: the positions that reach the decoder; for M-RoPE ``[3 or 4, B, L]``, which
                carry the grid.

        Raises:
            UnsupportedModelError: the tokens of a video do not form its grid.
        """

    def penalises_prompt(self) -> bool:
        """Whether repetition penalties count the prompt's tokens, as they do in the family's
        published pipeline."""
        return True

    def decoder(self, model: nn.Module) -> nn.Module:
        """The text decoder: the module that has ``layers`` and ``rotary_emb``."""
        return find_decoder(model)

    def tower(self, model: Any) -> nn.Module:
        """The vision tower, so that its time can be told from that of preprocessing."""
        return getattr(model.model, "vision_tower", None) or model.model.visual


def processor_resize(processor: Any, frames: np.ndarray) -> np.ndarray:
    """uint8 ``[T, H, W, 3]`` in the size in which the processor hands frames on."""
    batch = processor.video_processor(
        videos=[torch.from_numpy(frames).permute(0, 3, 1, 2)],
        do_rescale=False,
        do_normalize=False,
        do_sample_frames=False,
        return_tensors="pt",
    )
    return batch[processor.video_processor.model_input_names[0]][0].permute(0, 2, 3, 1).numpy()


def frame_pixels(processor: Any, video: Video, frames: int) -> Iterator[torch.Tensor]:
    """Pixels ``[n, 3, S, S]`` of a video as the processor prepares single frames, at most
    ``frames`` at a time."""
    for start in range(0, len(video.frames), frames):
        chunk = torch.from_numpy(video.frames[start : start + frames]).permute(0, 3, 1, 2)
        batch = processor.video_processor(videos=[chunk], do_sample_frames=False, return_tensors="pt")
        yield batch[processor.video_processor.model_input_names[0]][0]


def runs(mask: torch.Tensor) -> list[tuple[int, int, int]]:
    """(row, start, length) of each run of True in ``mask`` ``[B, L]``."""
    padded = torch.nn.functional.pad(mask.to(torch.int8), (1, 1))
    steps = padded.diff(dim=-1)
    starts, ends = (steps == 1).nonzero().tolist(), (steps == -1).nonzero().tolist()
    return [(row, start, end - start) for (row, start), (_, end) in zip(starts, ends, strict=True)]
