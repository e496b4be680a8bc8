"""STTM: spatio-temporal token merging (arXiv 2507.07990, section 3).

:func:`merge_video_tokens` (``merge.py``) is the algorithm, step by step. For each frame, a quadtree::

    build a pyramid of the grid: a coarser level averages 2x2 cells of the finer one          grid.py, pyramid.py
    nodes = all nodes of the root level
    while there are nodes:                                                                    pyramid.py
        a node that is similar enough to each of its children (cosine >= spatial_threshold) becomes a token
        the other nodes are replaced by their children; at the finest level every node becomes a token

Then along time::

    for each pair of tokens in consecutive frames of which one box contains the other:        cluster.py
        if they are similar enough (cosine >= temporal_threshold), the later one joins the earlier one
    a token that stays becomes the mean of all tokens that joined it; it keeps its place      average.py

With a budget instead of thresholds::

    measure all similarities of the video once            similarity.py: gather.py (CPU), products.py (accelerators)
    search the pair of thresholds with the largest share of kept tokens within the budget     search.py
    split the least similar tokens again until the count is met                               exact.py
"""

from sttm_lmms.methods.base import BudgetWarning
from sttm_lmms.methods.sttm.calibrate import calibrate
from sttm_lmms.methods.sttm.merge import STTMConfig, merge_video_tokens
from sttm_lmms.types import MergedTokens

__all__ = ["BudgetWarning", "MergedTokens", "STTMConfig", "calibrate", "merge_video_tokens"]
