"""Errors that tell the user what was wrong and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class STTMError(Exception):
    """Base of the errors this package raises for bad input or an unsupported situation."""


class VideoError(STTMError):
    """A video could not be read. ``path`` names it."""

    def __init__(self, path: object, reason: str, hint: str = "") -> None:
        self.path = str(path)
        self.reason = reason
        super().__init__(f"{path}: {reason}" + (f"; {hint}" if hint else ""))


class CheckpointError(STTMError):
    """A checkpoint has an unknown layout, or a tensor is missing, unexpected or mis-shaped."""


class UnsupportedModelError(STTMError):
    """A model, cache or input that the runtime cannot reduce."""


class AnnotationError(STTMError):
    """An annotation file or record is malformed. The message names the file and the record
    number."""


class FeatureError(STTMError):
    """A stored feature file is unsafe, broken, or made with other settings."""


class ResultError(STTMError):
    """A result file of lmms-eval is missing, broken or contradicts itself. The message names it."""


class OutOfMemoryError(STTMError):
    """A device or the host has no memory left. The message says which settings to lower."""


class NothingReducedError(STTMError):
    """A run asked for a reduction and nothing was reduced."""


class NothingAnsweredError(STTMError):
    """A run in which no question about a video could be answered."""


def unknown(kind: str, value: object, known: Iterable[object]) -> ValueError:
    """A ``ValueError`` that offers the closest known value and lists them all."""
    names = [str(k) for k in known]
    close = get_close_matches(str(value), names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return ValueError(f"unknown {kind} {value!r}.{hint} Known: {', '.join(sorted(names))}")
