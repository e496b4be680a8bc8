"""The pyramid over each frame: pooled features, and from similarities the nodes at which the
descent stops."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from sttm_lmms.methods.sttm.grid import Grid


def coarse_nodes(features: torch.Tensor, grid: Grid, weighted_avg: bool) -> list[torch.Tensor]:
    """Features of the coarse nodes over ``[T, H, W, C]``, in its dtype: ``[T, n', C]`` each, that
    one after the other are the nodes as :class:`Grid` numbers them.

    A node's feature is the mean of its children's, or with ``weighted_avg`` the mean of all its
    cells.
    """
    finer = features.movedim(-1, 1)
    levels: list[torch.Tensor] = []
    for cells in reversed(grid.pool_weights):
        if cells is None or not weighted_avg:
            finer = _mean_of_children(finer)
        else:
            # The mean of (cells * child) over the mean of cells, in float32: in half precision sums
            # could overflow.
            finer = (_mean_of_children(finer * cells) / _mean_of_children(cells)).to(finer.dtype)
        levels.insert(0, finer.movedim(1, -1))
    return [levels[level][:, rows].flatten(1, 2) for level, rows in grid.pieces]


def _mean_of_children(grid: torch.Tensor) -> torch.Tensor:
    """``[..., h, w]`` -> ``[..., ceil(h/2), ceil(w/2)]``.

    A padding of one in front of an odd side, not counted in the mean, leaves its first row or
    column alone.
    """
    return F.avg_pool2d(grid, 2, padding=(grid.shape[-2] % 2, grid.shape[-1] % 2), count_include_pad=False)


def over_cells(similarity: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """``[T, n]`` similarities of the coarse nodes with their children, on the cells under each
    node, and the running maxima from the root down: both ``[T, L - 1, 1, H*W]``."""
    # A node that is not a number is similar to nothing; in a running maximum it would spread to all
    # nodes below.
    on_cells = similarity.nan_to_num(nan=-torch.inf)[:, grid.over].unsqueeze(2)
    return on_cells, on_cells.cummax(1).values if grid.levels > 1 else on_cells


def leaf_level(running_max_similarity: torch.Tensor, spatial: float | torch.Tensor) -> torch.Tensor:
    """``[T, B, H*W]`` int64, level of the token over each cell at a spatial threshold (or at
    ``[B, 1]`` of them): the coarsest node that is similar enough to each of its children, or else
    the cell."""
    return (running_max_similarity < spatial).sum(1)
