#!/usr/bin/env python
"""End-to-end seconds a video with videos read ahead, against the sum of its parts.

    python scripts/bench_pipeline.py
    python scripts/bench_pipeline.py --videos 8 --workers 1 2 4 8

The videos are real mp4 files. The model is a stand-in that SLEEPS for as long as reading a video takes here, as a GPU
leaves the CPU alone while it works: what is measured is whether reading goes on meanwhile, not a model. Writes a table
and JSON into results/bench/pipeline/.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from benchlib import about, markdown_table, write_json

from sttm_lmms.families import FAMILIES
from sttm_lmms.runtime.prefetch import Prefetcher
from sttm_lmms.testing.tiny import tiny_model
from sttm_lmms.video import VideoSettings, write_video


def footage(seed: int, frames: int, height: int, width: int) -> np.ndarray:
    """``[T, H, W, 3]`` uint8: a gradient that drifts under noise, so that decoding has something to do."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    base = np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], axis=-1).astype(np.uint8)
    noise = rng.integers(0, 40, (height, width, 3), dtype=np.uint8)
    return np.stack([np.roll(base, 3 * t, axis=1) // 2 + noise for t in range(frames)])


def run(read, paths: list[Path], sleep: float, depth: int, workers: int | None) -> tuple[float, float]:
    """(seconds in all, seconds in which the model waited)."""
    ahead, waited = Prefetcher(depth, workers), 0.0
    began = time.perf_counter()
    for path in ahead.ahead(paths, lambda path: (path, lambda: read(path))):
        asked = time.perf_counter()
        result = ahead.take(path)
        read(path) if result is None else result()
        waited += time.perf_counter() - asked
        time.sleep(sleep)
    return time.perf_counter() - began, waited


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=8)
    parser.add_argument("--frames", type=int, default=64, help="frames of each file; half of them are seen")
    parser.add_argument("--size", type=int, nargs=2, default=(360, 640), metavar=("H", "W"))
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--out", type=Path, default=Path("results/bench/pipeline"))
    args = parser.parse_args()

    family, settings = FAMILIES["llava_video"], VideoSettings(max_frames=args.frames // 2, fps=1.0)
    _, processor = tiny_model("llava_video", seed=0)

    def read(path: Path) -> object:
        return family.preprocess(processor, family.read_video(path, settings))

    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{seed}.mp4" for seed in range(args.videos)]
        for seed, path in enumerate(paths):
            write_video(path, footage(seed, args.frames, *args.size), 1.0)
        read(paths[0])
        began = time.perf_counter()
        for path in paths:
            read(path)
        alone = (time.perf_counter() - began) / args.videos
        rows = []
        for workers in [0, *args.workers]:
            seconds, waited = run(read, paths, alone, workers and max(2, workers), workers or None)
            # The first video cannot be hidden behind anything: the best that can be had hides all the others.
            hidden = 1 - (waited - alone) / (alone * (args.videos - 1))
            rows.append(
                {
                    "workers": workers,
                    "read_s": alone,
                    "model_s": alone,
                    "sum_s": 2 * alone,
                    "end_to_end_s": seconds / args.videos,
                    "hidden": hidden,
                }
            )
            print(rows[-1], flush=True)
    header = about("cpu")
    columns = [("workers", "d"), ("read_s", ".3f"), ("model_s", ".3f"), ("sum_s", ".3f"), ("end_to_end_s", ".3f")]
    text = markdown_table(rows, [*columns, ("hidden", ".0%")], header)
    write_json(args.out / "pipeline.json", about=header, rows=rows)
    (args.out / "pipeline.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
