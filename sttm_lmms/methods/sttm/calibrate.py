"""One fixed pair of thresholds for many videos, as the paper uses them."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from sttm_lmms.config import check_number
from sttm_lmms.methods.sttm.cluster import count_tokens
from sttm_lmms.methods.sttm.grid import Grid, grid_for
from sttm_lmms.methods.sttm.merge import STTMConfig, check_features
from sttm_lmms.methods.sttm.search import LOWEST, Search
from sttm_lmms.methods.sttm.similarity import Similarities, Thresholds, measure


def calibrate(
    features: Iterable[torch.Tensor], budget: float, config: STTMConfig, head_dim: int | None = None
) -> Thresholds:
    """One fixed pair of thresholds that meets a budget on average over videos, as the paper uses
    them.

    Args:
        features: visual tokens ``[T, H, W, C]`` of each video, at the layer where they are to be
            merged. Taken one at a time; only similarities are kept.
        budget: average over videos of kept tokens / all tokens, in (0, 1].
        config: everything but thresholds and budget.
        head_dim: see :func:`sttm_lmms.methods.sttm.merge_video_tokens`.

    Raises:
        ValueError: there is no video, the budget is out of range, or no thresholds keep so few
            tokens.
    """
    check_number("budget", budget, 0.0, 1.0, low_open=True)
    videos: list[tuple[Similarities, Grid]] = []
    for video in features:
        check_features(video, config, head_dim)
        grid = grid_for(*video.shape[1:3], config.root_level, config.odd_edge, video.device)
        per_head = head_dim if config.per_head else None
        videos.append((measure(video, grid, weighted_avg=config.weighted_avg, head_dim=per_head), grid))
    if not videos:
        raise ValueError("calibration needs at least one video")

    def average_share(point: Thresholds) -> float:
        shares = []
        for similarities, grid in videos:
            count_tokens(similarities, grid, [point])
            shares.append(similarities.counts[point].kept / (len(similarities.min_child_similarity) * grid.cells))
        return sum(shares) / len(shares)

    search = Search(average_share, budget)
    search.search_diagonal()
    if search.best_share is None:
        raise ValueError(
            f"budget={budget} is below what these videos allow: even the lowest thresholds keep "
            f"{average_share(LOWEST):.4f} of the tokens on average; ask for more, or start the quadtrees at a lower "
            "root_level"
        )
    return search.best
