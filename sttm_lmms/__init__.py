"""STTM: training-free spatio-temporal token merging for video LLMs.

Names are imported on first use, so that `import sttm_lmms` (which lmms-eval does while it looks for
plugins) costs nothing and cannot fail because of an optional dependency.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "STTMConfig": "sttm_lmms.methods.sttm",
    "MergedTokens": "sttm_lmms.types",
    "VideoSpan": "sttm_lmms.types",
    "Tokens": "sttm_lmms.types",
    "Kept": "sttm_lmms.types",
    "merge_video_tokens": "sttm_lmms.methods.sttm",
    "calibrate": "sttm_lmms.methods.sttm",
    "get_method": "sttm_lmms.methods",
    "register_method": "sttm_lmms.methods",
    "method_names": "sttm_lmms.methods",
    "Method": "sttm_lmms.methods.base",
    "reduce_tokens": "sttm_lmms.runtime",
    "encode_video": "sttm_lmms.runtime",
    "Engine": "sttm_lmms.runtime",
    "Request": "sttm_lmms.runtime",
    "GenerationSettings": "sttm_lmms.runtime",
    "Answer": "sttm_lmms.runtime",
    "Report": "sttm_lmms.runtime",
    "load_pretrained": "sttm_lmms.families",
    "VideoSettings": "sttm_lmms.video",
    "STTMError": "sttm_lmms.errors",
    "CheckpointError": "sttm_lmms.errors",
    "FeatureError": "sttm_lmms.errors",
    "NothingReducedError": "sttm_lmms.errors",
    "UnsupportedModelError": "sttm_lmms.errors",
    "VideoError": "sttm_lmms.errors",
}
__all__ = [
    "Answer",
    "CheckpointError",
    "Engine",
    "FeatureError",
    "GenerationSettings",
    "Kept",
    "MergedTokens",
    "Method",
    "NothingReducedError",
    "Report",
    "Request",
    "STTMConfig",
    "STTMError",
    "Tokens",
    "UnsupportedModelError",
    "VideoError",
    "VideoSettings",
    "VideoSpan",
    "__version__",
    "calibrate",
    "encode_video",
    "get_method",
    "load_pretrained",
    "merge_video_tokens",
    "method_names",
    "reduce_tokens",
    "register_method",
]

if TYPE_CHECKING:
    from sttm_lmms.errors import (
        CheckpointError,
        FeatureError,
        NothingReducedError,
        STTMError,
        UnsupportedModelError,
        VideoError,
    )
    from sttm_lmms.families import load_pretrained
    from sttm_lmms.methods import get_method, method_names, register_method
    from sttm_lmms.methods.base import Method
    from sttm_lmms.methods.sttm import STTMConfig, calibrate, merge_video_tokens
    from sttm_lmms.runtime import Answer, Engine, GenerationSettings, Report, Request, encode_video, reduce_tokens
    from sttm_lmms.types import Kept, MergedTokens, Tokens, VideoSpan
    from sttm_lmms.video import VideoSettings


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'sttm_lmms' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
