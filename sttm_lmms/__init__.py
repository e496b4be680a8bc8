"""STTM: training-free spatio-temporal token merging for video LLMs.

Names are imported on first use, so that `import sttm_lmms` (which lmms-eval does while it looks for plugins) costs
nothing and cannot fail because of an optional dependency.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "STTMConfig": "sttm_lmms.config",
    "MergedTokens": "sttm_lmms.methods.sttm",
    "merge_video_tokens": "sttm_lmms.methods.sttm",
    "reduce_tokens": "sttm_lmms.runtime",
    "encode_video": "sttm_lmms.runtime",
    "load_pretrained": "sttm_lmms.families",
}
__all__ = [
    "MergedTokens",
    "STTMConfig",
    "__version__",
    "encode_video",
    "load_pretrained",
    "merge_video_tokens",
    "reduce_tokens",
]

if TYPE_CHECKING:
    from sttm_lmms.config import STTMConfig
    from sttm_lmms.families import load_pretrained
    from sttm_lmms.methods.sttm import MergedTokens, merge_video_tokens
    from sttm_lmms.runtime import encode_video, reduce_tokens


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'sttm_lmms' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
