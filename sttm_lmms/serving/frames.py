"""For checkpoints that vLLM knows: frames by our sampler, prompts by the family's template; seeing,
merging and decoding are vLLM's, with our plugin in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar

from sttm_lmms.families.assemble import token_ids
from sttm_lmms.methods.base import Method
from sttm_lmms.runtime.requests import Request
from sttm_lmms.runtime.sources import SourceReader
from sttm_lmms.runtime.timing import Phases
from sttm_lmms.serving.engine import VLLMEngine, VLLMPrompt
from sttm_lmms.serving.vllm_plugin.reduction import reserved

if TYPE_CHECKING:
    from sttm_lmms.runtime.sources import Loaded
    from sttm_lmms.video import Video


class FrameReader(SourceReader):
    """Hands videos over as their frames: vLLM preprocesses and encodes them."""

    def _encode(self, visual: Any, chunks: Any, phases: Phases) -> Any:
        return visual

    def _load(self, request: Request, seconds: dict[str, float], *, preprocess: bool = False) -> Iterator[Loaded]:
        return super()._load(request, seconds)


class FramesEngine(VLLMEngine):
    """A :class:`VLLMEngine` that hands over frames; its model may lie on the meta device.

    vLLM reduces every video alike, as it was told when it started: by ``config``.
    """

    reader_class: ClassVar[type[SourceReader]] = FrameReader

    def _check(self, config: Any) -> None:
        if config not in (None, self.config):
            raise ValueError(f"vLLM was started with {self.config}, so one request cannot ask for {config}")

    def _vllm_prompt(self, request: Request, visuals: Sequence[Any], phases: Phases) -> VLLMPrompt:
        video_pad, image_pad = self._pads
        videos = [visual for visual in visuals if hasattr(visual, "frames")]
        pads = [video_pad if hasattr(visual, "frames") else image_pad for visual in visuals]
        ids: list[int] = []
        for segment in self.family.segments(self.processor, request.messages):
            ids += token_ids(self.processor.tokenizer, segment) if isinstance(segment, str) else [pads[segment]]
        given = {
            "video": [(video.frames, video_metadata(video)) for video in videos],
            "image": [visual.convert("RGB") for visual in visuals if not hasattr(visual, "frames")],
        }
        inputs: dict[str, Any] = {"prompt_token_ids": ids}
        if visuals:
            inputs["multi_modal_data"] = {kind: items for kind, items in given.items() if items}
        return VLLMPrompt(
            request,
            inputs,
            nbytes=sum(video.frames.nbytes for video in videos),
            text_before=next((place for place, token in enumerate(ids) if token in self._pads), len(ids)),
            removed=sum(self._removed(request.config, video) for video in videos),
            phases=phases,
        )

    def _removed(self, method: Method | None, video: Video) -> int:
        if method is None:
            return 0
        t, h, w = self.family.token_grid(self.model.config, video.frames.shape[:3])
        return t * h * w - reserved(method, (t, h, w))


def plugin_settings(method: Method | None) -> dict[str, Any]:
    """Arguments of ``vllm.LLM`` that reduce all videos by ``method``, and leave frames as they
    are."""
    as_they_are = {"mm_processor_kwargs": {"videos_kwargs": {"do_resize": False}}}
    if method is None:
        return as_they_are
    settings = {"method": method.name, **{field.name: getattr(method, field.name) for field in fields(method)}}
    # The rate is only vLLM's switch: it has to be above 0. The budget travels as itself.
    return {**as_they_are, "video_pruning_rate": 0.5, "hf_overrides": {"sttm": settings}}


def video_metadata(video: Video) -> dict[str, Any]:
    """What transformers' processors want to know about frames that are not to be sampled again.

    A variable frame rate is told as milliseconds.
    """
    fps = float(video.fps) if video.constant_rate else 1000.0
    numbers = video.indices if video.constant_rate else [1000 * seconds for seconds in video.timestamps]
    return {
        "fps": fps,
        "frames_indices": [round(number) for number in numbers],
        # So that frames a second, which Qwen2.5-VL rotates by, come out as sample_fps.
        "total_num_frames": round(len(video.frames) * fps / video.sample_fps),
        "duration": len(video.frames) / video.sample_fps,
        "do_sample_frames": False,
        "video_backend": "pyav",
    }
