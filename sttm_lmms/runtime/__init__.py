"""A decoder that runs with reduced visual tokens: hooks, per-layer masks and positions, KV
prefixes, timing."""

from sttm_lmms.runtime.engine import Engine
from sttm_lmms.runtime.reducer import TokenReducer, reduce_tokens
from sttm_lmms.runtime.report import Reduction, Report
from sttm_lmms.runtime.requests import (
    Answer,
    Counters,
    Failure,
    GenerationSettings,
    LogLikelihood,
    Reply,
    Request,
)
from sttm_lmms.runtime.video_prefix import VideoPrefix, encode_video

__all__ = [
    "Answer",
    "Counters",
    "Engine",
    "Failure",
    "GenerationSettings",
    "LogLikelihood",
    "Reduction",
    "Reply",
    "Report",
    "Request",
    "TokenReducer",
    "VideoPrefix",
    "encode_video",
    "reduce_tokens",
]
