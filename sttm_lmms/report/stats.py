"""Statistics of paired 0/1 scores whose questions share videos."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from statistics import NormalDist

Z95 = NormalDist().inv_cdf(0.975)


def clustered_error(scores: Sequence[float], clusters: Sequence[Hashable]) -> float | None:
    """Cluster-robust standard error of the mean:
    ``sqrt(G/(G-1) * sum_g (sum of g's deviations)^2) / n``.

    The sandwich estimator with the usual correction for the number of clusters G. None below two
    clusters.

    Args:
        scores: n scores.
        clusters: n cluster ids; questions about one video share one.
    """
    if len(scores) != len(clusters):
        raise ValueError(f"{len(scores)} scores but {len(clusters)} cluster ids; every score needs one")
    deviations: dict[Hashable, float] = defaultdict(float)
    if not scores:
        return None
    mean = math.fsum(scores) / len(scores)
    for score, cluster in zip(scores, clusters, strict=True):
        deviations[cluster] += score - mean
    count = len(deviations)
    if count < 2:
        return None
    return math.sqrt(count / (count - 1) * math.fsum(d * d for d in deviations.values())) / len(scores)


def clustered_interval(scores: Sequence[float], clusters: Sequence[Hashable]) -> tuple[float, float] | None:
    """95% interval of a mean of scores in [0, 1], clustered; it never leaves [0, 1].

    Wilson's interval at the effective sample size ``p(1-p)/se^2``, which is at most n. Where all
    scores are equal that is 0/0 and the number of clusters takes its place: ten right answers about
    one video are not ten observations. None below two clusters.
    """
    error = clustered_error(scores, clusters)
    if error is None:
        return None
    mean = math.fsum(scores) / len(scores)
    variance = mean * (1 - mean)
    if variance <= 0:
        return wilson(mean, len(set(clusters)))
    return wilson(mean, min(variance / error**2, len(scores)) if error > 0 else len(scores))


def wilson(mean: float, n: float) -> tuple[float, float]:
    """Wilson's 95% interval of a proportion ``mean`` of ``n`` observations (``n`` need not be
    whole)."""
    z2 = Z95**2
    centre = (mean + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(mean * (1 - mean) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar_exact(lost: int, won: int) -> float:
    """Two-sided exact McNemar test: p of a split at least this uneven if losing and winning were
    equally likely.

    Args:
        lost: questions that only the baseline answered right.
        won: questions that only the other run answered right.
    """
    if lost < 0 or won < 0:
        raise ValueError(f"lost={lost}, won={won}: counts cannot be negative")
    n = lost + won
    tail = sum(math.comb(n, k) for k in range(min(lost, won) + 1))
    return min(1.0, 2 * tail / 2**n)
