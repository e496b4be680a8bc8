"""One fixed pair of thresholds for many videos, as the paper uses them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from sttm_lmms.config import check_number
from sttm_lmms.methods.sttm.merge import Path, default_path, measure
from sttm_lmms.methods.sttm.search import LOWEST, Search, Thresholds

if TYPE_CHECKING:
    from sttm_lmms.methods.sttm.method import STTMConfig


def calibrate(
    features: Iterable[torch.Tensor],
    budget: float,
    config: STTMConfig,
    head_dim: int | None = None,
    *,
    _path: Path | None = None,
) -> Thresholds:
    """One fixed pair of thresholds that meets a budget on average over videos, as the paper uses them.

    Args:
        features: visual tokens ``[T, H, W, C]`` of each video, at the layer where they are to be merged. Taken one at a
            time; only similarities are kept.
        budget: average over videos of kept tokens / all tokens, in (0, 1].
        config: everything but thresholds and budget.
        head_dim: see :func:`sttm_lmms.methods.sttm.merge_video_tokens`.
        _path: for tests; :func:`~sttm_lmms.methods.sttm.merge.default_path` otherwise.

    Raises:
        ValueError: there is no video, the budget is out of range, or no thresholds keep so few tokens.
    """
    check_number("budget", budget, 0.0, 1.0, low_open=True)
    profiles = [
        measure(video, config, head_dim, _path or default_path(video.device)).without_features() for video in features
    ]
    if not profiles:
        raise ValueError("calibration needs at least one video")

    def average(thresholds: Thresholds) -> float:
        return sum(profile.share(thresholds) for profile in profiles) / len(profiles)

    search = Search(average, budget)
    search.follow_path()
    if search.best_share is None:
        raise ValueError(
            f"budget={budget} is below what these videos allow: even the lowest thresholds keep {average(LOWEST):.4f} "
            "of the tokens on average; ask for more, or start the quadtrees at a lower root_level"
        )
    return search.best
