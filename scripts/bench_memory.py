#!/usr/bin/env python
"""Memory of a run over many videos: resident bytes of the process every few videos, which must not grow.

    python scripts/bench_memory.py
    python scripts/bench_memory.py --videos 100 --every 10

The wrapper answers two questions about each video with the small checkpoint that comes with the package, reading ahead
in threads (they are inside of the process, so its memory is theirs too). Each setting runs in a process of its own. The
videos are a few generated mp4 files under many names, as every name is a video of its own to the wrapper. Writes a
table and JSON into results/bench/memory/.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchlib import about, markdown_table, write_json

from sttm_lmms.demo import shipped

MIB = 2**20
SETTINGS: dict[str, dict[str, Any]] = {
    "prefetch": {"prefetch": 2},
    "host_cache": {"prefetch": 2, "host_cache_gb": 0.05},
}
QUESTIONS = ("What is shown?", "What comes last?")


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def name_videos(folder: Path, count: int, distinct: int) -> list[Path]:
    """``count`` names of ``distinct`` generated files, in ``folder``."""
    from sttm_lmms.benchmarks.mini import write_benchmark

    write_benchmark(folder / "made", videos=distinct, lengths=(8,), sizes=((128, 96),), fps=(8,))
    made = sorted((folder / "made" / "vnbench" / "videos").iterdir())
    names = [folder / f"{number:04}.mp4" for number in range(count)]
    for number, name in enumerate(names):
        os.link(made[number % distinct], name)
    return names


def requests(videos: list[Path]) -> tuple[list[Any], list[Any]]:
    """lmms-eval's documents and chat requests."""
    from lmms_eval.api.instance import Instance

    def messages(document: tuple[Path, str]) -> list[dict[str, Any]]:
        video, text = document
        return [{"role": "user", "content": [{"type": "video", "url": str(video)}, {"type": "text", "text": text}]}]

    documents = [(video, question) for video in videos for question in QUESTIONS]
    return documents, [
        Instance(
            "generate_until",
            ("", messages, {"max_new_tokens": 2}, number, "t", "test"),
            0,
            {"task": "t", "doc_id": number, "repeats": 1},
        )
        for number in range(len(documents))
    ]


def run(videos: list[Path], every: int, settings: dict[str, Any], connection: Any) -> None:
    """Send the resident bytes after every ``every`` videos."""
    from sttm_lmms.model_wrappers.llava_video import LlavaVideo

    wrapper = LlavaVideo(
        pretrained=str(shipped("llava_video")), device="cpu", budget=0.5, max_frames=8, fps=1.0, **settings
    )
    documents, asked = requests(videos)
    wrapper.task_dict = {"t": {"test": documents}}
    for number, _ in enumerate(wrapper.generate_until(asked), start=1):
        if number % (every * len(QUESTIONS)) == 0:
            gc.collect()
            connection.send(resident())
    connection.close()


def measure(videos: list[Path], every: int, settings: dict[str, Any]) -> Iterator[int]:
    """What :func:`run` sends from a fresh process."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=run, args=(videos, every, settings, sender))
    process.start()
    sender.close()
    for _ in range(len(videos) // every):
        yield receiver.recv()
    process.join()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=500)
    parser.add_argument("--distinct", type=int, default=10, help="generated files behind the names")
    parser.add_argument("--every", type=int, default=25, help="videos between two readings")
    parser.add_argument("--out", type=Path, default=Path("results/bench/memory"))
    args = parser.parse_args(arguments)

    readings: dict[str, list[int]] = {}
    with tempfile.TemporaryDirectory() as folder:
        videos = name_videos(Path(folder), args.videos, args.distinct)
        for name, settings in SETTINGS.items():
            readings[name] = []
            for value in measure(videos, args.every, settings):
                readings[name].append(value)
                print(f"{name}: {args.every * len(readings[name])} videos, {value / MIB:.1f} MiB", flush=True)
    rows = [
        {
            "videos": args.every * (number + 1),
            **{f"{name}_MiB": values[number] / MIB for name, values in readings.items()},
        }
        for number in range(args.videos // args.every)
    ]
    header = about("cpu")
    table = markdown_table(rows, [("videos", "d"), *((f"{name}_MiB", ".1f") for name in SETTINGS)], header)
    write_json(args.out / "memory.json", about=header, settings=SETTINGS, rows=rows)
    (args.out / "memory.md").write_text(table)


if __name__ == "__main__":
    main()
