"""Merging of video tokens: pure functions on tensors ``[T, H, W, C]``, on torch alone."""

from sttm_lmms.merging.merge import merge_video_tokens
from sttm_lmms.merging.tokens import MergedTokens

__all__ = ["MergedTokens", "merge_video_tokens"]
