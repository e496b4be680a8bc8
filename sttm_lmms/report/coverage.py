"""How well kept tokens stand for all tokens of a video, without a language model: quantisation
error and coverage."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F

from sttm_lmms.methods.base import Method, Probe
from sttm_lmms.methods.ops import blocks
from sttm_lmms.types import Tokens

ROWS = 1024
"""Tokens that are compared with all kept ones at a time."""

DEPTH = 28
"""Layers of the decoder that a method may believe it is in."""


class Fidelity(NamedTuple):
    """Shares of a video's tokens: ``kept``; ``error``, what is left of their variance around the
    nearest kept token; ``coverage``, those that some kept token resembles."""

    kept: float
    error: float
    coverage: float


def measure(features: torch.Tensor, method: Method, cosine: float = 0.9) -> Fidelity:
    """Reduce the tokens ``[T, H, W, C]`` of one video and see what the kept ones stand for.

    Args:
        method: one that reads features and acts once, in front of one layer.
        cosine: similarity at which a token counts as covered.
    """
    tokens = Tokens.of_grid(features.float())
    (stage,) = method.stages(DEPTH)
    kept = method.reduce(tokens, stage if isinstance(stage, int) else stage.layer, cast(Probe, None), {})
    kept_features = tokens.features if kept is None else kept.features
    return Fidelity(
        len(kept_features) / len(tokens),
        quantisation_error(tokens.features, kept_features),
        coverage(tokens.features, kept_features, cosine),
    )


def quantisation_error(features: torch.Tensor, kept: torch.Tensor) -> float:
    """Sum of squared distances of the rows ``[N, C]`` to their nearest row of ``[K, C]``, over the
    sum to their mean.

    0: every row is there; 1: no better than one token, the mean, for all; more: worse than that.
    """
    left = torch.zeros((), device=features.device)
    for block in blocks(len(features), ROWS):
        nearest = torch.cdist(features[block], kept).argmin(1)
        # Not cdist's own value, which is rounded: a token that was kept as it is has to come out as 0.
        left += (features[block] - kept[nearest]).square().sum()
    spread = (features - features.mean(0)).square().sum()
    return float(left / spread) if spread > 0 else 0.0


def coverage(features: torch.Tensor, kept: torch.Tensor, cosine: float = 0.9) -> float:
    """Share of the rows ``[N, C]`` that have a row of ``[K, C]`` at this cosine similarity or
    more."""
    features, kept = F.normalize(features, dim=-1), F.normalize(kept, dim=-1)
    best = torch.cat([(features[block] @ kept.T).amax(1) for block in blocks(len(features), ROWS)])
    return float((best >= cosine).float().mean())
