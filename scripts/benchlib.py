"""What the benchmark scripts share: arguments, timing, a description of the machine, result
files."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch


def arguments(doc: str | None, out: str, *, repeats: int = 5) -> argparse.ArgumentParser:
    """A parser with what every timing script takes: ``--device``, ``--dtype``, ``--repeats``,
    ``--out``."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", help="bfloat16 on a GPU, float32 on a CPU unless given")
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--out", type=Path, default=Path("results/bench") / out)
    return parser


def dtype_of(options: argparse.Namespace) -> torch.dtype:
    """The data type that was asked for, or the device's usual one, which is also noted in
    ``options``."""
    options.dtype = options.dtype or ("bfloat16" if options.device.startswith("cuda") else "float32")
    return getattr(torch, options.dtype)


def timed(
    run: Callable[[], Any], *, repeats: int, warmup: int, device: str, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Seconds of each repeat, after warm-up; the device is waited for."""
    seconds = []
    for attempt in range(warmup + repeats):
        _wait(device)
        began = clock()
        run()
        _wait(device)
        if attempt >= warmup:
            seconds.append(clock() - began)
    return seconds


def median(values: Sequence[float]) -> float:
    """The median; a run's spread is kept beside it in the result files."""
    return statistics.median(values)


def peak_bytes(run: Callable[[], Any], device: str) -> int | None:
    """Device memory that ``run`` needs on top of what is allocated already; None on a CPU."""
    if not device.startswith("cuda"):
        return None
    _wait(device)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    _wait(device)
    return torch.cuda.max_memory_allocated() - before


def about(device: str) -> dict[str, Any]:
    """Command, date, machine and versions: what a published number has to carry."""
    import sttm_lmms

    cuda = device.startswith("cuda")
    return {
        "command": shlex.join(["python", *sys.argv]),
        "date": dt.datetime.now(dt.timezone.utc).date().isoformat(),
        "device": torch.cuda.get_device_name()
        if cuda
        else f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "sttm_lmms": sttm_lmms.__version__,
        "torch": torch.__version__,
        "transformers": version("transformers") if find_spec("transformers") else None,
        "python": platform.python_version(),
    }


def write_json(path: Path, **content: Any) -> None:
    """Write a result file, creating its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def markdown_table(rows: Sequence[dict[str, Any]], columns: Sequence[tuple[str, str]], header: dict[str, Any]) -> str:
    """A Markdown table with the command, machine and date under it; columns are (key, format)
    pairs."""
    lines = [
        "| " + " | ".join(key.replace("_", " ") for key, _ in columns) + " |",
        "|" + "|".join("---:" for _ in columns) + "|",
    ]
    for row in rows:
        cells = ["-" if row.get(key) is None else format(row[key], spec) for key, spec in columns]
        lines.append("| " + " | ".join(cells) + " |")
    versions = f"torch {header['torch']}, transformers {header['transformers']}"
    lines += ["", f"`{header['command']}` on {header['device']}, {versions}, {header['date']}.", ""]
    return "\n".join(lines)


def publish(
    path: Path, rows: Sequence[dict[str, Any]], columns: Sequence[tuple[str, str]], header: dict[str, Any]
) -> None:
    """Write ``path.json`` and the table ``path.md``, and print the table."""
    write_json(path.with_suffix(".json"), about=header, rows=rows)
    table = markdown_table(rows, columns, header)
    path.with_suffix(".md").write_text(table)
    print(table)


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
