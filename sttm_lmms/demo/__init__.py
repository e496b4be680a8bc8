"""``sttm-lmms demo``: what merging does to answers, and to the time to first token.

Answers: generated mp4 files, a small trained checkpoint of each family, the real ``lmms-eval``
three times on each.
Speed: a decoder of a real model's shape with random weights (:mod:`sttm_lmms.demo.speed`).
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from sttm_lmms.errors import unknown

FAMILIES = ("llava_video", "llava_onevision", "qwen2_vl")
SETTINGS = {"all tokens": "method=none", "about 50%": "budget=0.5", "about 30%": "budget=0.3"}
SQUARE_SIZES = ((112, 112), (128, 128), (144, 144), (160, 160))
"""Frame sizes (width, height) of the videos for the small Qwen2-VL checkpoint, which has learned
from square ones."""
QWEN_VIDEO = {"fps": 2.0, "max_frames": 32, "min_pixels": 48 * 28**2, "max_pixels": 50 * 28**2}
"""Its frames: 7x7 tokens for every pair of square ones."""


@dataclass(frozen=True)
class Checkpoint:
    """A small checkpoint and what it is, in words."""

    family: str
    path: Path
    description: str


@dataclass(frozen=True)
class Row:
    """One run: its result file and the seconds of the whole command."""

    checkpoint: Checkpoint
    label: str
    file: Path
    seconds: float


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the result files and tables.")] = Path("outputs/demo"),
    work: Annotated[Path, typer.Option(help="Folder for videos and checkpoints.")] = Path("outputs/demo/work"),
    videos: Annotated[int, typer.Option(help="Videos to make; each has four questions.", min=1)] = 12,
    family: Annotated[list[str] | None, typer.Option(help="Only these model families. Default: all three.")] = None,
    pictures: Annotated[bool, typer.Option(help="Draw plots and which tokens merged.")] = True,
    speed: Annotated[bool, typer.Option(help="Time a decoder of a real model's shape (about a minute).")] = True,
) -> None:
    """Compare all tokens with about 50% and 30% of them: answers of small models, speed of a real
    shape.

    Each run has a folder in --out, with results.json, samples_vnbench.jsonl and log.txt. A second
    demo writes over these and its tables and pictures; other files in --out stay as they are.
    """
    from rich.console import Console

    console = Console()
    for name in family or ():
        if name not in FAMILIES:
            raise unknown("family", name, FAMILIES)
    rows, data = [], {}
    for name in family or FAMILIES:
        checkpoint = find_checkpoint(name, work / "checkpoints")
        console.print(f"\n[bold]{name}[/bold]: {checkpoint.path}\n{checkpoint.description}")
        with console.status("Encoding videos ..."):
            data[name] = make_videos(work / "data", videos, name)
        console.print(f"{videos} videos with {4 * videos} questions: {data[name]}")
        for label, arguments in SETTINGS.items():
            args = lmms_eval_args(checkpoint, arguments)
            console.print(f"$ STTM_DATA_ROOT={data[name]} {shlex.join(['lmms-eval', *args])}", style="dim")
            rows.append(run(args, out, checkpoint, label, data[name]))
    console.print(table(rows))
    if speed:
        from sttm_lmms.demo.speed import measure_speed, speed_table

        with console.status("Timing a decoder of a real model's shape ..."):
            timed = measure_speed()
        console.print(speed_table(timed))
        console.print("Answers: trained toys. Speed: a real shape; random weights take the same time as trained ones.")
    write_reports(out, [row.file for row in rows], pictures=pictures)
    if pictures:
        draw_pictures(make_plain_video(work / "data"), out / "pictures")


def make_videos(folder: Path, count: int, family: str = "llava_video") -> Path:
    """Mini-VNBench with ``count`` videos under ``folder``, made where it is not there yet. Returns
    the data root."""
    from sttm_lmms.benchmarks.mini.writer import FRAME_SIZES

    root, complete = videos_folder(folder, count, family)
    _write_once(root, complete, videos=count, sizes=SQUARE_SIZES if family == "qwen2_vl" else FRAME_SIZES)
    return root


def make_plain_video(folder: Path) -> Path:
    """A video of the second set, whose plain areas merge in space; made where it is not there
    yet."""
    root = folder / "plain-video"
    _write_once(root, root / "complete.txt", videos=1, scenery="plain")
    return min((root / "vnbench" / "videos").iterdir())


def _write_once(root: Path, complete: Path, **arguments: Any) -> None:
    from sttm_lmms.benchmarks.mini import write_benchmark

    if not complete.is_file():
        write_benchmark(root, **arguments)
        complete.write_text("Written last: everything is there.\n")


def videos_folder(folder: Path, count: int, family: str) -> tuple[Path, Path]:
    """Where :func:`make_videos` puts them, and the file that says that they are complete."""
    root = folder / f"{count}-{'square-' if family == 'qwen2_vl' else ''}videos"
    return root, root / "complete.txt"


def find_checkpoint(family: str, folder: Path) -> Checkpoint:
    """A trained checkpoint that comes with the package; for OneVision one that is written under
    ``folder`` now."""
    trained = "trained on videos of this kind (not on these)"
    if family != "llava_onevision":
        layout = "Hugging Face" if family == "qwen2_vl" else "original lmms-lab"
        return Checkpoint(family, _shown(shipped(family)), f"A small checkpoint in the {layout} layout, {trained}.")
    from sttm_lmms.families import load_pretrained

    path = folder / family
    model: Any
    model, processor = load_pretrained(shipped("llava_video"), dtype="float32", device_map="cpu")
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return Checkpoint(family, path, f"The LLaVA-Video-shaped weights once more, in the Hugging Face layout; {trained}.")


def shipped(family: str) -> Path:
    """Folder of a trained checkpoint that comes with the package."""
    return Path(__file__).parents[1] / "checkpoints" / f"{family}_tiny"


def sampling(family: str) -> str:
    """The frames that a shipped checkpoint was trained on, as arguments of the wrapper."""
    video = QWEN_VIDEO if family == "qwen2_vl" else {"max_frames": 16}
    # Our tasks sample as the published runs did; these checkpoints learned from the model's own
    # frames.
    return ",".join([*(f"{key}={value:g}" for key, value in video.items()), "sampling=model"])


def lmms_eval_args(checkpoint: Checkpoint, arguments: str) -> list[str]:
    """The arguments of one run: lmms-eval as it is installed."""
    from sttm_lmms.cli.evaluate import tasks_folder

    return [
        *("--model", f"sttm_{checkpoint.family}"),
        *("--model_args", f"pretrained={checkpoint.path},{arguments},{sampling(checkpoint.family)}"),
        *("--tasks", "vnbench", "--include_path", str(_shown(tasks_folder()))),
    ]


def run(args: Sequence[str], out: Path, checkpoint: Checkpoint, label: str, data: Path) -> Row:
    """Run lmms-eval offline, into a folder of ``out`` that is named by family and label.

    Raises:
        STTMError: there is no result file; the end of lmms-eval's output is in the message.
    """
    from sttm_lmms.cli.launch import launch

    name = f"{checkpoint.family}-{label.replace('about ', '').replace(' ', '-').rstrip('%')}"
    # One thread is as fast as two for models of this size, and much faster where the machine has
    # other work.
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    settings = {"STTM_DATA_ROOT": str(data), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "OMP_NUM_THREADS": threads}
    started = time.perf_counter()
    file = launch(args, out / name, environment=settings)
    return Row(checkpoint, label, file, time.perf_counter() - started)


def table(rows: Sequence[Row]) -> Any:
    """The comparison as a rich table."""
    from rich.table import Table

    from sttm_lmms.provenance import RunSummary

    shown = Table(title="Answers: Mini-VNBench through lmms-eval, small trained models")
    for column in ("Model", "Visual tokens", "Accuracy", "Kept", "Whole command"):
        shown.add_column(column, justify="left" if column in ("Model", "Visual tokens") else "right")
    for row in rows:
        results = json.loads(row.file.read_text(encoding="utf-8"))
        summary = RunSummary.from_throughput(results["throughput"])
        shown.add_row(
            row.checkpoint.family,
            row.label,
            f"{100 * results['results']['vnbench']['accuracy,none']:.1f}%",
            f"{100 * (summary.kept_share_mean or 0):.1f}%",
            f"{row.seconds:.0f} s",
            end_section=row.label == list(SETTINGS)[-1],
        )
    return shown


def write_reports(out: Path, files: Sequence[Path], *, pictures: bool) -> None:
    """The leaderboard of these result files; with pictures a page and plots where matplotlib is
    installed."""
    from importlib.util import find_spec

    from sttm_lmms.report.cli import leaderboard

    leaderboard(list(files), out=out / "leaderboard.md", title="Mini-VNBench")
    if pictures and find_spec("matplotlib"):
        leaderboard(list(files), out=out / "leaderboard.html", plots=out / "plots", title="Mini-VNBench")


def draw_pictures(video: Path, out: Path) -> None:
    """Which tokens of a video merged at 50% and 30%, in the checkpoint with 14x14 tokens a
    frame."""
    from sttm_lmms.report.visualize import visualize

    visualize(video, out, model=str(_shown(shipped("llava_video_fine"))), setting=["budget=0.5", "budget=0.3"])


def _shown(path: Path) -> Path:
    """Relative to the working folder where it lies in there: result files hold no more of a machine
    than they need."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
