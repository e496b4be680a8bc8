"""What a run says about itself, and where that ends up in lmms-eval's result files.

lmms-eval 0.7.3 offers a model two ways into its files, and a run uses both:

* ``gen_metrics.log_metrics(..., additional_metrics=...)`` keeps numbers only, of rank 0 only,
  prints them and writes them as ``throughput["avg_<key>"]`` of ``*_results.json``. Those are the
  :data:`HEADLINE` of the run's :class:`RunSummary`.
* ``TokenCounts.to_dict()`` of every answer is written as ``token_counts[0]`` of its line in
  ``*_samples_*.jsonl``, for every task and from all ranks. ``Answer.record`` makes that
  dictionary. The first answer of a task carries the run's :class:`Provenance` under
  ``"provenance"`` and its whole :class:`RunSummary` under ``"run"``; where ranks exchange nothing,
  each has a first one.

Imports nothing heavy: the leaderboard reads these keys on machines without torch.
"""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

METRIC_PREFIX = "avg_"
"""lmms-eval puts this in front of every additional metric, in ``results["throughput"]``."""

PROVENANCE_KEY = "provenance"
RUN_KEY = "run"
TIMING_KEY = "timing_s"

HEADLINE = (
    *("questions_per_s", "failures", "reduction_asked", "reduced_share", "kept_share_mean"),
    *("tokens_before", "tokens_after", "ttft_first_s", "merge_s", "decode_s_per_token", "peak_memory_bytes"),
)
"""What lmms-eval prints of a :class:`RunSummary` at the end of a run; failures if there were any.
The results file without its samples holds no more."""


@dataclass(frozen=True)
class RunSummary:
    """Totals of a run: numbers only, because lmms-eval drops everything else. ``None`` means not
    measured.

    Attributes:
        questions: answers given.
        questions_per_s: the same a second, decoding, vision and all else included, over all
            processes.
        failures: videos that could not be read.
        videos_decoded, vision_passes, prefills: work done; reuse makes them smaller than
            ``questions``.
        reduction_asked: 1 if the run was asked to reduce tokens, else 0: one of the two flags of
            the activity check.
        reduced_share: share of the answers whose visual tokens were reduced: the other flag.
        requested_budget: kept / all visual tokens that was asked for; None if thresholds were
            given.
        tokens_before, tokens_after: visual tokens per answer, mean.
        layer_tokens_mean: visual tokens that a decoder layer's attention sees at the prefill, mean
            over layers and answers: the same measure for methods that reduce before, inside or
            layer by layer.
        kv_share_mean: KV entries attended to while decoding / all of them; None without cache
            editing.
        kept_share_mean, kept_share_min, kept_share_max: kept / all visual tokens over the answers.
        ttft_s: seconds to the first token (decoder only, as in the paper: no video decoding, no
            vision), mean.
        ttft_first_s: the same over answers that reused no prefix; comparable with the paper's.
        ttft_end_to_end_s: the same with video decoding, preprocessing and the vision tower.
        video_decode_s, preprocess_s, vision_s: seconds of each phase before the decoder, mean over
            the same answers.
        prefill_before_s, merge_s, prefill_after_s: the decoder's first pass over a video: below the
            start layer, the merge itself, and from the start layer on.
        prefill_s: seconds of the whole prefill, mean.
        decode_s_per_token: seconds per generated token after the first, mean.
        peak_memory_bytes: peak allocated device memory; None on CPU.
    """

    questions: int = 0
    questions_per_s: float | None = None
    failures: int = 0
    videos_decoded: int = 0
    vision_passes: int = 0
    prefills: int = 0
    reduction_asked: int = 0
    reduced_share: float = 0.0
    requested_budget: float | None = None
    tokens_before: float | None = None
    tokens_after: float | None = None
    layer_tokens_mean: float | None = None
    kv_share_mean: float | None = None
    kept_share_mean: float | None = None
    kept_share_min: float | None = None
    kept_share_max: float | None = None
    ttft_s: float | None = None
    ttft_first_s: float | None = None
    ttft_end_to_end_s: float | None = None
    video_decode_s: float | None = None
    preprocess_s: float | None = None
    vision_s: float | None = None
    prefill_before_s: float | None = None
    merge_s: float | None = None
    prefill_after_s: float | None = None
    prefill_s: float | None = None
    decode_s_per_token: float | None = None
    peak_memory_bytes: int | None = None

    def metrics(self) -> dict[str, float]:
        """The measured numbers."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    def headline(self) -> dict[str, float]:
        """The few that are printed, for ``log_metrics(additional_metrics=...)``."""
        shown = set(HEADLINE) if self.failures else set(HEADLINE) - {"failures"}
        return {key: value for key, value in self.metrics().items() if key in shown}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunSummary:
        """Read a summary back; keys of later versions are ignored."""
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})

    @classmethod
    def from_throughput(cls, throughput: Mapping[str, Any]) -> RunSummary:
        """What ``results["throughput"]`` holds of a summary: the headline, in older files all of
        it."""
        return cls.from_dict({key.removeprefix(METRIC_PREFIX): value for key, value in throughput.items()})


@dataclass(frozen=True)
class Provenance:
    """What has to be equal for two runs to be comparable, and what it takes to repeat one.

    Attributes:
        method: name in the methods registry, or ``"none"``.
        settings: the method's settings (thresholds or budget, start layer, ...).
        checkpoint: hub id or local folder, as given to ``pretrained=``.
        checkpoint_commit: hub commit of the checkpoint where known.
        family: name of a model family, such as ``llava_video``.
        frames, fps, sampling: limits and rule of the frame sampling; ``video_backend``: who decoded
            the video.
        newline: newline mode of the LLaVA family.
        reuse: what is shared between the questions of a video.
        attention, dtype, device: how the model ran; ``device`` is the hardware's name.
        package, lmms_eval, transformers, torch, python: versions; ``commit``: git commit of this
            package.
    """

    method: str = "none"
    settings: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    checkpoint_commit: str | None = None
    family: str | None = None
    frames: int | None = None
    fps: float | None = None
    sampling: str | None = None
    video_backend: str | None = None
    newline: str | None = None
    reuse: str | None = None
    attention: str | None = None
    dtype: str | None = None
    device: str | None = None
    package: str | None = None
    commit: str | None = None
    lmms_eval: str | None = None
    transformers: str | None = None
    torch: str | None = None
    python: str | None = None
    platform: str | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Provenance:
        """Read a provenance back; keys of later versions are ignored."""
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})


def collect_provenance(
    model: Any = None,
    *,
    method: str = "none",
    config: Any = None,
    checkpoint: str | None = None,
    family: str | None = None,
    video: Any = None,
    newline: str | None = None,
    reuse: str | None = None,
) -> Provenance:
    """Ask the loaded model, the installed packages and the machine.

    Args:
        model: a loaded transformers model; dtype, attention, device and hub commit are read from
            it.
        method, config: name and settings (a dataclass) of the reduction; ``config=None`` means no
            reduction.
        checkpoint: what the user gave as ``pretrained``; the model's own name if left out.
        video: a ``VideoSettings``.
    """
    model_config = getattr(model, "config", None)
    dtype = getattr(model, "dtype", None)
    return Provenance(
        method=method,
        settings={key: value for key, value in _plain(config).items() if value is not None},
        checkpoint=checkpoint or getattr(model_config, "_name_or_path", None),
        checkpoint_commit=getattr(model_config, "_commit_hash", None),
        family=family,
        frames=getattr(video, "max_frames", None),
        fps=getattr(video, "fps", None),
        sampling=getattr(video, "sampling", None),
        video_backend=getattr(video, "backend", None),
        newline=newline,
        reuse=reuse,
        attention=getattr(model_config, "_attn_implementation", None),
        dtype=str(dtype).removeprefix("torch.") if dtype is not None else None,
        device=_device_name(getattr(model, "device", None)),
        package=_version("sttm-lmms"),
        commit=_package_commit(),
        lmms_eval=_version("lmms-eval"),
        transformers=_version("transformers"),
        torch=_version("torch"),
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
    )


def _plain(config: Any) -> dict[str, Any]:
    return asdict(config) if is_dataclass(config) and not isinstance(config, type) else {}


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _device_name(device: Any) -> str | None:
    if device is None:
        return None
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    return str(device.type)


def _package_commit() -> str | None:
    """Commit of the checkout this package runs from (``-dirty`` with local changes); None for an
    installed wheel."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
