"""What is installed on this machine, what works, and what to do about what does not."""

from __future__ import annotations

import importlib.util
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

Status = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """One line of the report. ``advice`` says what to do, and is empty where nothing has to be
    done."""

    subject: str
    status: Status
    detail: str
    advice: str = ""


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
