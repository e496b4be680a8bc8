"""Mini-VNBench: a generated needle-in-a-haystack benchmark of small real mp4 files (after
VideoNIAH's VNBench).

Needles are saturated shapes of one to two and a half cells, shown for one second, over or between
shots of moving texture. :func:`write_benchmark` writes a data root that the ``vnbench`` task reads
as it reads the real one.
"""

from sttm_lmms.benchmarks.mini.writer import MiniVideo, plan_video, write_benchmark

__all__ = ["MiniVideo", "plan_video", "write_benchmark"]
