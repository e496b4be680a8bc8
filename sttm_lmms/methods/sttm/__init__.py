"""STTM: spatio-temporal token merging (arXiv 2507.07990, section 3).

For each frame, a quadtree (``quadtree.py``)::

    build a pyramid of the grid: a coarser level averages 2x2 cells of the finer one
    nodes = all nodes of the root level
    while there are nodes:
        a node that is similar enough to each of its children (cosine >= spatial_threshold) becomes a token
        the other nodes are replaced by their children; at the finest level every node becomes a token

Then along time (``temporal.py``)::

    for each pair of tokens in consecutive frames of which one box contains the other:
        if they are similar enough (cosine >= temporal_threshold), the later one joins the earlier one
    a token that stays becomes the mean of all tokens that joined it (``average.py``); it keeps its place

With a budget instead of thresholds (``budget.py``, ``search.py``)::

    measure all similarities of the video once
    search the pair of thresholds with the largest share of kept tokens that is still within the budget
"""

from sttm_lmms.methods.sttm.budget import BudgetWarning
from sttm_lmms.methods.sttm.calibrate import calibrate
from sttm_lmms.methods.sttm.merge import merge_video_tokens
from sttm_lmms.methods.sttm.method import STTMConfig
from sttm_lmms.types import MergedTokens

__all__ = ["BudgetWarning", "MergedTokens", "STTMConfig", "calibrate", "merge_video_tokens"]
