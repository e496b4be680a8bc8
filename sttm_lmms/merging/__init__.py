"""Merging of video tokens: pure functions on tensors ``[T, H, W, C]``, on torch alone."""

from sttm_lmms.merging.budget import BudgetWarning, calibrate
from sttm_lmms.merging.merge import merge_video_tokens
from sttm_lmms.merging.tokens import MergedTokens

__all__ = ["BudgetWarning", "MergedTokens", "calibrate", "merge_video_tokens"]
