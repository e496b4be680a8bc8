"""One multiple-choice question about one video, whatever benchmark it comes from."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass, field

LETTERS = string.ascii_uppercase


@dataclass(frozen=True)
class Question:
    """A validated record of an annotation file.

    Attributes:
        video_id: names the video file, ``{video_id}.mp4``.
        question_id: unique within the benchmark.
        question: the question alone.
        options: the option lines as the prompt shows them, each with its letter (``"A. Apples."``).
        answer: the letter of the right option, or ``None`` where the benchmark keeps it secret.
        categories: what results are broken down by, for example
            ``{"duration": "short", "task_type": "order"}``.
        seconds: about how long the video is, 0 where the annotations do not say; it decides who
            answers what, nothing else.
    """

    video_id: str
    question_id: str
    question: str
    options: tuple[str, ...]
    answer: str | None
    categories: Mapping[str, str] = field(default_factory=dict)
    seconds: float = field(default=0.0, compare=False)

    @property
    def letters(self) -> str:
        """The option letters of this question, for example ``"ABCD"``."""
        return LETTERS[: len(self.options)]
