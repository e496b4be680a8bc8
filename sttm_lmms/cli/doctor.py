"""``sttm-lmms doctor``: what is installed, what works, and what to do about what does not."""

from __future__ import annotations

import importlib.util
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

import typer

Status = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """One line of the report. ``advice`` says what to do, and is empty where nothing has to be done."""

    subject: str
    status: Status
    detail: str
    advice: str = ""


def doctor(
    checkpoint: Annotated[
        str | None, typer.Option("--model", help="Checkpoint folder or hub id to look at; nothing is downloaded.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Data root to look at. Default: $STTM_DATA_ROOT or ./datasets.")
    ] = None,
    frames: Annotated[
        int | None, typer.Option(min=1, help="Frames of a video: predicts the memory of a run with --model.")
    ] = None,
    budget: Annotated[float, typer.Option(help="Share of visual tokens to keep, for the prediction.")] = 1.0,
    start_layer: Annotated[int, typer.Option(min=0, help="Layer in front of which tokens are merged.")] = 2,
    gpu_memory: Annotated[float | None, typer.Option(help="GiB of the GPU. Default: this machine's.")] = None,
) -> None:
    """Check versions, devices, attention, video backends, lmms-eval, data and a checkpoint. Status 1 on a problem."""
    from rich.console import Console
    from rich.table import Table

    from sttm_lmms.config import check_number

    check_number("budget", budget, 0.0, 1.0, low_open=True)
    if frames is not None and checkpoint is None:
        raise ValueError("--frames predicts the memory of a checkpoint: give it with --model")
    findings = list(examine(checkpoint, data))
    if frames is not None and checkpoint is not None:
        findings += predict_memory(checkpoint, frames, budget, start_layer, gpu_memory)
    table = Table(title="sttm-lmms doctor", show_lines=False)
    for column in ("", "What", "Found", "What to do"):
        table.add_column(column, overflow="fold")
    marks = {"ok": "[green]ok", "note": "[yellow]note", "problem": "[red]problem"}
    for finding in findings:
        table.add_row(marks[finding.status], finding.subject, finding.detail, finding.advice)
    Console().print(table)
    if any(finding.status == "problem" for finding in findings):
        raise typer.Exit(1)


def examine(checkpoint: str | None = None, data: Path | None = None) -> Iterator[Finding]:
    """All findings. A check that fails in a way nobody foresaw is a finding too."""
    checks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("versions", _versions),
        ("devices", _devices),
        ("attention", _attention),
        ("video", _video),
        ("lmms-eval", _lmms_eval),
        ("data", lambda: _data(data)),
    ]
    if checkpoint is not None:
        checks.append(("checkpoint", lambda: _checkpoint(checkpoint)))
    for subject, check in checks:
        try:
            yield from check()
        except Exception as error:
            yield Finding(subject, "problem", f"{type(error).__name__}: {error}", "see the message")


def _versions() -> Iterator[Finding]:
    yield Finding("Python", "ok", platform.python_version())
    findings = [_requirement(text) for text in metadata.requires("sttm-lmms") or [] if ";" not in text]
    yield Finding("packages", "ok", ", ".join(f"{f.subject} {f.detail}" for f in findings if f.status == "ok"))
    yield from (finding for finding in findings if finding.status != "ok")
    if importlib.util.find_spec("torchvision"):
        import torchvision

        yield Finding("torchvision works", "ok", torchvision.__version__)


def _requirement(requirement: str) -> Finding:
    from packaging.requirements import Requirement

    wanted = Requirement(requirement)
    try:
        found = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        return Finding(wanted.name, "problem", "not installed", f"pip install '{requirement}'")
    if wanted.specifier.contains(found, prereleases=True):
        return Finding(wanted.name, "ok", found)
    return Finding(wanted.name, "problem", f"{found} is outside of {wanted.specifier}", f"pip install '{requirement}'")


def _devices() -> Iterator[Finding]:
    import torch

    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        yield Finding(f"cuda:{index}", "ok", f"{device.name}, {device.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        yield Finding("mps", "ok", platform.processor())
    cores = os.cpu_count()
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        yield Finding("cpu", "ok", f"{cores} cores")
    else:
        advice = "fine for small models; for 7B get a CUDA build of torch and a GPU with 24 GiB"
        yield Finding("devices", "note", f"no GPU, {cores} CPU cores", advice)


def _attention() -> Iterator[Finding]:
    import torch

    yield Finding("attn_implementation", "ok", "sdpa, eager")
    if importlib.util.find_spec("flash_attn"):
        yield Finding("flash_attention_2", "ok", metadata.version("flash-attn"))
    elif torch.cuda.is_available():
        yield Finding("flash_attention_2", "note", "not installed", "optional: pip install 'sttm-lmms[flash]'")


def _video() -> Iterator[Finding]:
    import numpy as np

    from sttm_lmms.video import available_backends, read_frames, write_video

    found = available_backends()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "check.mp4"
        frames = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), dtype=np.uint8)
        write_video(path, iter(frames), 4.0)
        for backend in found:
            video = read_frames(path, [0, 3], backend)
            yield Finding(f"video backend {backend}", "ok", f"read {len(video.frames)} frames of a file just written")
    if "decord" not in found:
        advice = "optional, faster on long videos: pip install 'sttm-lmms[eval]'"
        yield Finding("video backend decord", "note", "not installed", advice)


def _lmms_eval() -> Iterator[Finding]:
    from sttm_lmms.cli.evaluate import tasks_folder

    if not importlib.util.find_spec("lmms_eval"):
        yield Finding("lmms-eval", "problem", "not installed", "pip install 'sttm-lmms[eval]'")
        return
    yield Finding("lmms-eval", "ok", metadata.version("lmms-eval"))
    from sttm_lmms.model_wrappers import WRAPPERS
    from sttm_lmms.model_wrappers.harness import finds_model

    for name in WRAPPERS:
        if finds_model(name):
            yield Finding(f"--model {name}", "ok", "found by lmms-eval")
        else:
            advice = (
                "lmms-eval stops at the first entry point that fails: look for 'Failed to load model entry-point' in "
                "its output, and remove that plugin or reinstall sttm-lmms"
            )
            yield Finding(f"--model {name}", "problem", "the entry point is not seen by lmms-eval", advice)
    count = len(list(tasks_folder().rglob("*.yaml")))
    yield Finding("tasks", "ok" if count else "problem", f"{count} task files in {tasks_folder()}")


def _data(root: Path | None) -> Iterator[Finding]:
    from sttm_lmms.benchmarks.data import data_root
    from sttm_lmms.benchmarks.formats import FORMATS

    folder = root or data_root()
    found = [name for name in FORMATS if (folder / name / "annotations").is_dir()]
    if found:
        yield Finding("data root", "ok", f"{folder}: {', '.join(found)}")
        return
    advice = "set STTM_DATA_ROOT or run there; sttm-lmms prepare makes the data, sttm-lmms demo needs none"
    yield Finding("data root", "note", f"{folder} has no annotations", advice)


def _checkpoint(checkpoint: str) -> Iterator[Finding]:
    from huggingface_hub import try_to_load_from_cache

    from sttm_lmms.errors import CheckpointError
    from sttm_lmms.families import layout_of

    folder = Path(checkpoint)
    if not folder.is_dir():
        config = try_to_load_from_cache(checkpoint, "config.json")
        if not isinstance(config, str):
            advice = "give a local folder, or download it: hf download " + checkpoint
            yield Finding("checkpoint", "problem", f"{checkpoint} is neither a folder nor in the hub cache", advice)
            return
        folder = Path(config).parent
    try:
        family, layout = layout_of(folder)
    except CheckpointError as error:
        yield Finding("checkpoint", "problem", str(error), "see README for the supported checkpoints")
        return
    yield Finding("checkpoint", "ok", f"{family.name}, {layout} layout: --model sttm_{family.name}")


def predict_memory(
    checkpoint: str, frames: int, budget: float, start_layer: int = 2, gpu_memory: float | None = None
) -> list[Finding]:
    """GiB that a run on videos of ``frames`` frames needs; a problem if that is more than the GPU has.

    Args:
        checkpoint: folder or hub id; of the hub, only small files and tensor headers are fetched.
        budget: share of visual tokens that is kept.
        gpu_memory: GiB; None takes this machine's GPU. Without one there is nothing to compare with.
    """
    import torch
    from transformers.utils import logging

    from sttm_lmms.errors import CheckpointError
    from sttm_lmms.families import layout_of
    from sttm_lmms.rehearsal import gather, sight_of
    from sttm_lmms.runtime.memory import GIB, Work, largest_fit, predict, sizes_of, ways_out
    from sttm_lmms.video import VideoSettings

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        files = gather(checkpoint)
        family = layout_of(files.folder)[0]
        model = family.load_model(files.folder, headers=files.headers, dtype=torch.bfloat16)
    except CheckpointError as error:
        return [Finding("memory", "problem", str(error), "see the message")]
    sight = sight_of(family.name, model.config, None, VideoSettings(max_frames=frames))
    sizes = sizes_of(model)
    work = Work(sight.grid, kept=budget, start_layer=start_layer)
    needs = predict(sizes, work)
    kinds = ("weights", "kv", "activations", "merging", "vision", "features")
    parts = ", ".join(f"{kind} {getattr(needs, kind) / GIB:.2f}" for kind in kinds)
    detail = (
        f"{needs.total / GIB:.1f} GiB for {frames} frames ({work.visual:,} tokens, "
        f"{round(work.visual * budget):,} kept, {sight.info.width}x{sight.info.height} pixels, bfloat16): {parts} GiB"
    )
    limit = _gpu_limit(gpu_memory)
    if limit is None:
        return [Finding("memory", "note", detail, "no GPU here to compare with; --gpu-memory 80 does")]
    if needs.total <= limit:
        return [Finding("memory", "ok", f"{detail}; the GPU has {limit / GIB:.0f} GiB")]
    fit = largest_fit(sizes, work, limit)
    fits = f"; {fit * frames // work.grid[0]} frames would fit" if fit else ""
    advice = (
        f"lower {' or '.join(ways_out(work, frames=frames))}{fits}; sttm-lmms rehearse --gpus N looks at several GPUs"
    )
    return [Finding("memory", "problem", f"{detail}; the GPU has {limit / GIB:.0f} GiB", advice)]


def _gpu_limit(gpu_memory: float | None) -> int | None:
    import torch

    if gpu_memory is not None:
        return int(gpu_memory * 2**30)
    if not torch.cuda.is_available():
        return None
    return min(torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count()))
