"""A decoder that runs with reduced visual tokens: hooks, per-layer masks and positions, KV prefixes, timing."""

from sttm_lmms.runtime.reducer import TokenReducer, reduce_tokens
from sttm_lmms.runtime.report import Reduction, Report

__all__ = ["Reduction", "Report", "TokenReducer", "reduce_tokens"]
