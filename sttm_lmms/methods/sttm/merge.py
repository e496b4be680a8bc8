"""The public entry: thresholds or a budget in, merged tokens out (arXiv 2507.07990, section 3)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Literal

import torch

from sttm_lmms.methods.base import max_tokens
from sttm_lmms.methods.sttm.average import average_groups
from sttm_lmms.methods.sttm.budget import BudgetWarning, Profile, search_budget
from sttm_lmms.methods.sttm.dense import DenseVideo, fits
from sttm_lmms.methods.sttm.exact import Labels, leave_groups, split_nodes
from sttm_lmms.methods.sttm.quadtree import Partition, Quadtrees, build_quadtrees, check_features, partition_at
from sttm_lmms.methods.sttm.search import Thresholds
from sttm_lmms.methods.sttm.temporal import Merged, Pairs, merge_in_time, similarities_of
from sttm_lmms.types import MergedTokens

if TYPE_CHECKING:
    from sttm_lmms.methods.sttm.method import STTMConfig


Path = Literal["sparse", "dense", "triton"]
"""How tokens are found: over lists of nodes and pairs block by block, in tables of all of them at once, or in such
tables with a kernel of our own for the union, which no GPU has run yet and which is therefore nobody's default."""


def merge_video_tokens(
    features: torch.Tensor, config: STTMConfig, head_dim: int | None = None, *, _path: Path | None = None
) -> MergedTokens:
    """Merge the visual tokens of one video.

    With ``config.budget`` ``max_tokens(budget, T*H*W)`` tokens are kept: those of the thresholds that
    :mod:`sttm_lmms.methods.sttm.search` finds, which keep at most one point less wherever there are such, and of which
    :mod:`sttm_lmms.methods.sttm.exact` splits the least similar ones. A budget below the video's floor, the share that
    the lowest thresholds keep, gives that floor and a :class:`BudgetWarning`.

    Args:
        features: ``[T, H, W, C]``, any float dtype and device, T, H, W >= 1.
        config: thresholds, or a budget; ``start_layer`` and ``decode_positions`` play no role here.
        head_dim: channels of an attention head; needed with ``config.per_head``, unused without.
        _path: for tests and benchmarks; :func:`default_path` otherwise.

    Returns:
        The tokens in sequence order. ``info`` holds ``spatial_threshold`` and ``temporal_threshold``, the number of
        tokens ``after_spatial``, that is before any merged in time, and after a
        search also the requested ``budget`` and the number of ``evaluations``; thresholds found by a search give the
        same tokens when they are given as thresholds, but for those that were split off.

    Raises:
        ValueError: ``features`` has another rank or is empty, or ``head_dim`` is missing or does not divide C.
        TypeError: ``features`` is not floating point.
    """
    path = _path or default_path(features.device)
    if config.budget is None:
        assert config.spatial_threshold is not None
        assert config.temporal_threshold is not None
        thresholds = Thresholds(config.spatial_threshold, config.temporal_threshold)
        return measure(features, config, head_dim, path, temporal=thresholds.temporal > 0).merge_at(thresholds)
    return _merge_to_budget(measure(features, config, head_dim, path), config.budget)


def default_path(device: torch.device) -> Path:
    """Dense on CUDA devices, where launches and host reads are what costs."""
    return "dense" if device.type == "cuda" else "sparse"


def measure(
    features: torch.Tensor, config: STTMConfig, head_dim: int | None, path: Path, *, temporal: bool = True
) -> SparseVideo | DenseVideo:
    """All similarities of a video; ``temporal=False`` may leave out what only the temporal step needs.

    Arguments and errors as in :func:`merge_video_tokens`.
    """
    check_features(features, config, head_dim)
    if path != "sparse" and fits(features, config):
        return DenseVideo.of(features, config, head_dim, temporal=temporal, kernels=path == "triton")
    return SparseVideo(build_quadtrees(features, config, head_dim), config.weighted_avg)


def _merge_to_budget(video: SparseVideo | DenseVideo, budget: float) -> MergedTokens:
    most = max_tokens(budget, video.tokens)
    search = search_budget(video.profile, most / video.tokens)
    merged = video.merge_at(search.best, most)
    if merged.budget > budget:
        kept = f"{len(merged)} of {merged.source_map.numel()} tokens ({merged.budget:.4f})"
        reason = f"is below what this video allows: its lowest thresholds keep {kept}"
        warnings.warn(f"budget={budget} {reason}", BudgetWarning, stacklevel=3)
    return replace(merged, info={**merged.info, "budget": budget, "evaluations": search.evaluations})


@dataclass(frozen=True)
class SparseVideo:
    """A measured video on the path of CPUs; :class:`~sttm_lmms.methods.sttm.dense.DenseVideo` is the other one."""

    trees: Quadtrees
    weighted_avg: bool

    @property
    def tokens(self) -> int:
        """T*H*W."""
        return self.trees.norms[-1].shape[0]

    @cached_property
    def profile(self) -> Profile:
        """What a search for thresholds asks."""
        return Profile.of(self.trees)

    def without_features(self) -> Profile:
        """The same similarities for counting alone."""
        return self.profile

    def merge_at(self, thresholds: Thresholds, wanted: int = 0) -> MergedTokens:
        """The tokens at a pair of thresholds, split until there are as many as ``wanted``.

        What a search has measured is looked up there; without one, only the pairs at hand are measured.
        """
        similarities = self.profile.look_up if wanted else None
        return merge_at(
            self.trees, *thresholds, weighted_avg=self.weighted_avg, wanted=wanted, similarities=similarities
        )


def merge_at(
    trees: Quadtrees,
    spatial: float,
    temporal: float,
    *,
    weighted_avg: bool = False,
    wanted: int = 0,
    similarities: Callable[[Pairs], torch.Tensor] | None = None,
) -> MergedTokens:
    """The tokens of a video at a pair of thresholds, split until there are as many as ``wanted``.

    ``similarities`` of pairs are measured unless they are given. ``info`` holds the thresholds and the number of tokens
    after the spatial step, before splitting.
    """
    partition = partition_at(trees.layout, trees.min_child_similarity, spatial)
    merged = merge_in_time(partition, temporal, similarities or partial(similarities_of, trees))
    info = {
        "spatial_threshold": spatial,
        "temporal_threshold": temporal,
        "after_spatial": int(partition.is_anchor.sum()),
    }
    if wanted:
        partition, merged = _split(trees, partition, merged, wanted)
    return _collect(trees, partition, merged.owner, weighted_avg, info)


def _split(trees: Quadtrees, partition: Partition, merged: Merged, wanted: int) -> tuple[Partition, Merged]:
    """Split tokens until there are as many as wanted."""
    cell, shape = torch.arange(merged.owner.numel(), device=merged.owner.device), merged.owner.shape
    kept, spatial = (int((label.flatten() == cell).sum()) for label in (merged.owner, partition.anchor))
    if wanted <= kept:
        return partition, merged
    labels = Labels(partition.level.flatten(), partition.anchor.flatten(), merged.owner.flatten())
    if wanted <= spatial and merged.later is not None and merged.link is not None:
        labels = leave_groups(labels, merged.later, merged.link, wanted - kept)
    else:
        labels = replace(labels, owner=labels.anchor)
        agreement = trees.min_child_similarity.flatten(2)
        labels = split_nodes(labels, agreement, trees.layout.anchors(), wanted - spatial)
    return Partition(labels.level.view(shape), labels.anchor.view(shape)), Merged(labels.owner.view(shape))


def _collect(
    trees: Quadtrees, partition: Partition, owner: torch.Tensor, weighted_avg: bool, info: dict[str, float]
) -> MergedTokens:
    """Number the surviving tokens and average their members; ``owner`` ``[T, H, W]`` holds survivors' anchors."""
    layout, level = trees.layout, partition.level.flatten()
    survives = owner.flatten() == torch.arange(owner.numel(), device=owner.device)
    survivor = survives.nonzero().squeeze(1)
    source_map = (survives.cumsum(0) - 1)[owner]
    counts = _occurrences(source_map.flatten(), len(survivor))
    t, y, x = layout.coordinates(survivor)
    boxes = torch.stack((t, y, x, layout.bottom[level[survivor], y], layout.right[level[survivor], x]), 1)

    anchor = partition.is_anchor.flatten().nonzero().squeeze(1)
    group, order = source_map.flatten()[anchor].sort(stable=True)
    member = anchor[order]
    sizes = _occurrences(group, len(survivor))
    if weighted_avg:
        cells = _occurrences(partition.anchor.flatten(), owner.numel())
        weight = cells[member].float() / counts[group].float()
    else:
        weight = sizes[group].float().reciprocal()
    features = average_groups(trees, member, level[member], weight, sizes)
    return MergedTokens(features, boxes, counts, source_map, info)


def _occurrences(index: torch.Tensor, length: int) -> torch.Tensor:
    """How often each of 0..length-1 occurs; like ``bincount``, which would make a GPU wait for the largest index."""
    return torch.zeros(length, dtype=torch.int64, device=index.device).index_add_(0, index, torch.ones_like(index))
