"""A decoder that runs with reduced visual tokens: hooks, per-layer masks and positions, KV
prefixes, timing.

From pixels to the KV cache a video is five values::

    Video           frames                           video.read_frames
    VisionFeatures  what the vision tower makes      Family.vision_features, Family.project
    PreparedInput   a prompt's embeddings            Family.prepare
    Tokens -> Kept  before and after each stage      TokenReducer's hooks, Method.reduce
    Prefix          the KV cache behind all stages   prefix.prefill_prefix

A question that continues a prefix becomes an :class:`Answer`, and that one json line of a result
file (``Answer.record``).
"""

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
