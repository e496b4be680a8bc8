"""A video that is encoded and prefilled once and asked many times."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from sttm_lmms.runtime.engine import Engine
from sttm_lmms.runtime.requests import Answer, GenerationSettings, Request
from sttm_lmms.runtime.sources import with_key

if TYPE_CHECKING:
    from sttm_lmms.video import VideoSettings


class VideoPrefix:
    """A video that has been decoded, encoded, merged and prefilled; made by
    :func:`encode_video`."""

    def __init__(self, engine: Engine, video: Any, system: str | None) -> None:
        self._engine, self._video, self._system = engine, video, system
        # What the video is now: later questions are about it, whatever becomes of its file or of
        # the frames' buffer.
        self._key = with_key(self._request(" ", GenerationSettings()), {}).visuals_key
        self.prefill_answer = self.answer(" ", max_new_tokens=1)
        """The answer that paid for the prefix; its ``timing`` includes decoding, encoding and
        prefill."""

    @property
    def visual_tokens(self) -> int:
        """Visual tokens before reduction."""
        return self.prefill_answer.visual_tokens

    @property
    def kept_tokens(self) -> int:
        """Visual tokens after reduction."""
        return self.prefill_answer.kept_tokens

    def ask(self, question: str, **generation: Any) -> str:
        """Answer a question; keyword arguments are those of :meth:`GenerationSettings.of`."""
        return self.answer(question, **generation).text

    def answer(self, question: str, **generation: Any) -> Answer:
        """As :meth:`ask`, with token counts and times."""
        request = self._request(question, GenerationSettings.of(**generation))
        (answer,) = self._engine.generate([replace(request, visuals_key=self._key)])
        return answer

    def _request(self, question: str, generation: GenerationSettings) -> Request:
        content = [{"type": "video", "video": self._video}, {"type": "text", "text": question}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if self._system is not None:
            messages.insert(0, {"role": "system", "content": self._system})
        return Request(messages, generation)


def encode_video(
    model: nn.Module,
    processor: Any,
    video: Any,
    config: Any = None,
    *,
    settings: VideoSettings | None = None,
    system: str | None = None,
) -> VideoPrefix:
    """Decode, encode, merge and prefill ``video`` once; every ``ask`` continues from that KV cache.

    Args:
        model, processor: from :func:`sttm_lmms.load_pretrained`.
        video: a file; or the frames, all of which are seen and count as ``settings.fps`` a second:
            a list of PIL images, or uint8 ``[T, H, W, 3]`` or ``[T, 3, H, W]``.
        config: settings of a reduction method, None keeps all tokens.
        settings: frame sampling.
        system: system prompt; None is the family's own.

    Raises:
        VideoError: the file cannot be read, or what was given cannot be frames.
    """
    engine = Engine(model, processor, config, video=settings, on_error="raise")
    return VideoPrefix(engine, video, system)
