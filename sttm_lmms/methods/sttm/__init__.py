"""Merging of video tokens: pure functions on tensors ``[T, H, W, C]``, on torch alone."""

from sttm_lmms.methods.sttm.budget import BudgetWarning, calibrate
from sttm_lmms.methods.sttm.merge import merge_video_tokens
from sttm_lmms.types import MergedTokens

__all__ = ["BudgetWarning", "MergedTokens", "calibrate", "merge_video_tokens"]
