"""The end of a test run: which groups did not run on this machine, and how to get them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

WAYS = {
    "Chromium": "install chromium or google-chrome, so that one is on the PATH",
    "CUDA": "run on a machine with an NVIDIA GPU and a CUDA build of torch",
    "annotation file": "put the benchmarks' published annotation files where the reason says",
    "torchcodec": 'pip install "torchcodec>=0.7", and FFmpeg (Debian: apt-get install ffmpeg)',
    "vLLM": "make test-vllm",
    "root may": "run as an ordinary user",
    "could not import": "make install",
    "is not installed": "make install",
}
"""Part of a skip's reason -> what to do. A reason that no key fits says itself what is missing."""


def skipped_groups(reasons: Iterable[str]) -> list[str]:
    """One line for each reason, most tests first."""
    counts = Counter(reason.removeprefix("Skipped: ") for reason in reasons)
    return [_line(reason, count) for reason, count in counts.most_common()]


def _line(reason: str, count: int) -> str:
    way = next((way for part, way in WAYS.items() if part in reason), "")
    return f"{count} skipped: {reason}" + (f" -> {way}" if way else "")
