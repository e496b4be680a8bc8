#!/usr/bin/env python
"""Time and memory of merging alone, beside the published code where a checkout of it is at hand.

    python scripts/bench_merge.py
    OMP_NUM_THREADS=1 python scripts/bench_merge.py --device cpu --clock processor     (a machine that is not idle)
    python scripts/bench_merge.py --reference PATH        (beside the merger of a checkout of github.com/HYUNJS/STTM)

Needs torch only (matplotlib for the plot, einops for the published code); set PYTHONPATH=. where
the package is not installed. Starts from one case, the first value of every list, and varies one
thing at a time; data type and kept share are crossed. Features are made up
(``sttm_lmms.testing.synthetic``), thresholds are those that the budget search finds for the share.
Writes JSON and a table into results/bench/merge/ after every case, a plot at the end; no case
starts after --minutes.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from benchlib import about, markdown_table, median, peak_bytes, timed, write_json

from sttm_lmms.methods.sttm import STTMConfig, merge_video_tokens
from sttm_lmms.testing.synthetic import natural_features

COLUMNS = (
    ("shape", ""),
    ("dtype", ""),
    ("kept", ".1%"),
    ("spatial_threshold", ".3f"),
    ("temporal_threshold", ".3f"),
    ("merge_ms", ".1f"),
    ("with_search_ms", ".1f"),
    ("search_steps", ""),
    ("reference_ms", ".1f"),
    ("speedup", ".1f"),
    ("merge_memory", ".2f"),
    ("with_search_memory", ".2f"),
    ("reference_memory", ".2f"),
    ("merge_waits", ""),
    ("with_search_waits", ""),
    ("reference_waits", ""),
)

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
NOTES = """# Merging alone

`merge`: thresholds given; `with search`: budget given; `reference`: the published merger (`--reference`). Medians, of
the wall clock or, with `--clock processor`, of the processor time of all threads. Memory is the peak beyond the input,
result included, in multiples of the input (resident memory on a CPU, the allocator's count on a GPU). Waits: on a GPU,
how often a call made the host wait. Speed-up is reference / merge.

"""


@dataclass(frozen=True)
class Case:
    """One shape and share."""

    frames: int
    grid: str
    channels: int
    dtype: str
    share: float

    @property
    def shape(self) -> tuple[int, int, int, int]:
        height, width = map(int, self.grid.split("x"))
        return self.frames, height, width, self.channels


def cases(options: argparse.Namespace) -> list[Case]:
    """The sweeps, without repetitions."""
    first = Case(options.frames[0], options.grids[0], options.channels[0], options.dtypes[0], options.shares[0])
    found = [replace(first, dtype=dtype, share=share) for dtype in options.dtypes for share in options.shares]
    found += [replace(first, frames=frames) for frames in options.frames]
    found += [replace(first, channels=channels) for channels in options.channels]
    found += [replace(first, grid=grid, frames=frames) for grid in options.grids[1:] for frames in options.frames]
    return list(dict.fromkeys(found))


def measure(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """One row: times in ms (medians), memory beyond the input as a multiple of the input, the
    result included."""
    device, clock = options.device, CLOCKS[options.clock]
    features = natural_features(*case.shape, dtype=getattr(torch, case.dtype), device=device)
    input_bytes = features.numel() * features.element_size()
    by_budget = STTMConfig(budget=case.share)
    merged = merge_video_tokens(features, by_budget)
    row = asdict(case) | merged.info | {"kept": merged.budget, "tokens": features[..., 0].numel()}
    row["shape"], row["search_steps"] = f"{case.frames}x{case.grid}x{case.channels}", row.pop("evaluations")
    by_thresholds = STTMConfig(row["spatial_threshold"], row["temporal_threshold"])
    del merged

    ways: dict[str, Callable[[], Any]] = {
        "merge": lambda: merge_video_tokens(features, by_thresholds),
        "with_search": lambda: merge_video_tokens(features, by_budget),
    }
    if options.reference is not None and input_bytes <= options.reference_limit * 2**30:
        published = published_merger(options.reference)
        # The published code takes channels first, as a view of the hidden states.
        video, root = features.movedim(-1, 1), by_thresholds.root_level
        ways["reference"] = lambda: published(video, row["spatial_threshold"], row["temporal_threshold"], root)
        row["reference_kept"] = len(ways["reference"]()[0]) / row["tokens"]
    for name, run in ways.items():
        row[f"{name}_memory"] = extra_bytes(run, device) / input_bytes
        row[f"{name}_ms"] = 1e3 * median(timed(run, repeats=options.repeats, warmup=1, device=device, clock=clock))
        row[f"{name}_waits"] = waits(run, device)
    if "reference" in ways:
        row["speedup"] = row["reference_ms"] / row["merge_ms"]
    return row


def published_merger(checkout: Path) -> Callable[..., Any]:
    """``quadtree_build_video`` of a checkout of the published code.

    Raises:
        SystemExit: it is not there, or cannot be imported.
    """
    if not (checkout / "token_merging_utils" / "quadtree_builder.py").is_file():
        raise SystemExit(f"--reference {checkout}: no token_merging_utils/quadtree_builder.py; give a checkout's root")
    sys.path.insert(0, str(checkout.resolve()))
    try:
        return import_module("token_merging_utils.quadtree_builder").quadtree_build_video
    except ImportError as error:
        raise SystemExit(f"--reference {checkout} cannot be imported: {error} (it needs einops)") from error
    finally:
        sys.path.pop(0)


def waits(run: Callable[[], Any], device: str) -> int | None:
    """How often a call made the host wait for the device; None on CPUs."""
    if device != "cuda":
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in caught)


def extra_bytes(run: Callable[[], Any], device: str) -> float:
    """Peak memory of a call beyond what was in use before; on CPUs resident memory (Linux; NaN
    elsewhere)."""
    gc.collect()
    allocated = peak_bytes(run, device)
    if allocated is not None:
        return allocated
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return float("nan")
    ctypes.CDLL(None).malloc_trim(0)  # what earlier calls freed goes back to the system, or it would hide new use
    before = peak = int(statm.read_text().split()[1])
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.0005):
            peak = max(peak, int(statm.read_text().split()[1]))

    watcher = threading.Thread(target=watch)
    watcher.start()
    run()
    done.set()
    watcher.join()
    return (peak - before) * os.sysconf("SC_PAGE_SIZE")


def plot(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    """Time against tokens, one colour per grid, for the first data type, share and number of
    channels."""
    if not rows:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    sweep = [row for row in rows if all(row[key] == rows[0][key] for key in ("channels", "dtype", "share"))]
    sweep.sort(key=lambda row: row["tokens"])
    for color, grid in enumerate(dict.fromkeys(row["grid"] for row in rows)):
        for name, style in (("merge", "o-"), ("with_search", "^:"), ("reference", "x--")):
            points = [
                (row["tokens"], row[f"{name}_ms"]) for row in sweep if row["grid"] == grid and f"{name}_ms" in row
            ]
            if points:
                axes.plot(
                    *zip(*points, strict=True), style, color=f"C{color}", label=f"{grid} {name.replace('_', ' ')}"
                )
    axes.set(xscale="log", yscale="log", xlabel="visual tokens before merging", ylabel="time [ms]", title=title)
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def write(rows: list[dict[str, Any]], path: Path, header: dict[str, Any]) -> None:
    """JSON and table of the cases so far; columns that no case has are left out of the table."""
    columns = [(key, spec) for key, spec in COLUMNS if any(row.get(key) is not None for row in rows)]
    write_json(path.with_suffix(".json"), header=header, rows=rows)
    path.with_suffix(".md").write_text(NOTES + markdown_table(rows, columns, header))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--frames", type=int, nargs="+", default=[128, 64, 32, 16])
    parser.add_argument("--grids", nargs="+", default=["14x14", "27x27"], metavar="HxW")
    parser.add_argument("--channels", type=int, nargs="+", default=[3584, 896])
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.3])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="processor: on a CPU that is not idle")
    parser.add_argument(
        "--reference", type=Path, metavar="PATH", help="checkout of the published code to run beside ours"
    )
    parser.add_argument(
        "--reference-limit", type=float, default=0.5, help="GiB of input up to which the published code is run"
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="no case starts later than that")
    parser.add_argument("--out", type=Path, default=Path("results/bench/merge"))
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    header = about(options.device) | {"load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None}
    rows: list[dict[str, Any]] = []
    began, path = time.monotonic(), options.out / options.device
    todo = cases(options)
    for case in todo:
        if time.monotonic() - began > 60 * options.minutes:
            print(f"--minutes {options.minutes:g} are over: {len(todo) - len(rows)} cases left out")
            break
        rows.append(measure(case, options))
        print(markdown_table(rows[-1:], COLUMNS, header).splitlines()[2], flush=True)
        write(rows, path, header)
    try:
        plot(rows, path.with_suffix(".png"), f"Merging alone, {header['device']}")
    except ImportError:
        print("matplotlib is not installed: no plot")
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
