"""What a run will do, short of the weights: checkpoint, prompt, frames, generation settings,
memory, downloads."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub as hub
import torch
from loguru import logger

from sttm_lmms.cli.check_memory import memory_lines
from sttm_lmms.cli.evaluate import tasks_folder
from sttm_lmms.cli.prompt_preview import long_video, preview_prompt, preview_video
from sttm_lmms.errors import VideoError
from sttm_lmms.families import get_family, layout_of
from sttm_lmms.families.checkpoint import CheckpointFiles, fetch_headers, resolve_checkpoint
from sttm_lmms.model_wrappers.arguments import parse_arguments, refused_arguments
from sttm_lmms.model_wrappers.harness import split_arguments
from sttm_lmms.model_wrappers.preview import preview_task
from sttm_lmms.model_wrappers.settings import task_settings
from sttm_lmms.model_wrappers.task_defaults import generation_settings
from sttm_lmms.runtime import GenerationSettings
from sttm_lmms.runtime.memory import Workload
from sttm_lmms.types import PreparedInput
from sttm_lmms.video import VideoInfo, VideoSettings, probe


def check_run(
    checkpoint: str,
    task: str,
    values: dict[str, Any],
    model_args: str = "",
    gen_kwargs: str = "",
    include_path: Path | None = None,
    family_name: str | None = None,
    gpus: int = 1,
    gpu_memory: float | None = None,
) -> Iterator[str]:
    """The report of a run, line by line, each as soon as it is known.

    Args:
        values: what the wrapper will get beside ``model_args``.
        gpu_memory: GiB of each GPU; None takes this machine's.

    Raises:
        STTMError, ValueError: the run would fail; the message says why and what to do.
    """
    logger.disable("lmms_eval")
    datasets.disable_progress_bars()
    spread_out = {"device_map": "auto"} if gpus > 1 else {}
    values = {"pretrained": checkpoint, **spread_out, **split_arguments(model_args), **values}
    revision = values.pop("revision", None)
    if not {"method", "budget", "preset", "spatial_threshold", "temporal_threshold"} & values.keys():
        values["method"] = "none"
    found, layout = layout_of(resolve_checkpoint(checkpoint, revision=revision, files=["config.json"]))
    family = get_family(family_name) if family_name else found
    arguments = parse_arguments(values, refused=refused_arguments(family))
    preview = preview_task(task, str(include_path or tasks_folder()), gen_kwargs)
    settings = task_settings(arguments, family.name, task)

    files = fetch_headers(checkpoint, revision)
    dtype = torch.bfloat16 if arguments.dtype == "auto" else getattr(torch, arguments.dtype)
    model: Any = family.load_model(files.folder, headers=files.headers, dtype=dtype)  # shapes, no values
    shards = {header.file for header in files.headers.values()}
    yield (
        f"checkpoint: {checkpoint}: {family.name}, {layout} layout, {model.num_parameters():,} parameters; "
        f"all {len(files.headers)} tensors in {len(shards)} files fit the model by name and shape"
    )

    number = "unknown number of" if preview.questions is None else f"{preview.questions:,}"
    yield f"task: {preview.name}: {number} questions"
    video, assumed = _video_of(preview.video, settings.video)
    features = preview_video(family, model.config, video, settings.video)
    yield (
        f"frames: {features.metadata['num_frames']} of {video.total_frames:,} (at most {settings.video.max_frames} at "
        f"{settings.video.fps:g} a second), {video.width}x{video.height} pixels, a grid of "
        f"{'x'.join(map(str, features.tensor.shape[:3]))} tokens"
    )
    if assumed:
        yield f"note: these are assumptions: {assumed}"
    newline = arguments.newline or ("no_token" if settings.config is not None else None)
    processor = family.load_processor(files.folder, model)
    prepared, text = preview_prompt(family, model, processor, preview.messages, features, newline)
    newlines = prepared.visual_tokens - features.tensor.numel()
    yield (
        f"tokens: {prepared.input_ids.shape[1]:,} in the prompt, {prepared.visual_tokens:,} of them visual "
        f"({newlines:,} newlines); the first {prepared.prefix_length:,} are shared by the questions of a video"
    )
    yield f"reduction: {_in_words(settings.config)}"
    yield "prompt of the first document:"
    yield from (f"  | {line}" for line in text.splitlines())
    _check_reduction(settings.config, prepared, model.config, newline)

    generation = generation_settings(preview.generation)
    yield "generation settings in force:"
    for name, value, by in effective_settings(generation, preview.generation, model.generation_config):
        yield f"  {name} = {value}  ({by})"

    longest = preview_video(family, model.config, long_video(settings.video, video), settings.video).tensor
    # Other questions may be longer, and the longest video has its share of newlines for each frame.
    around = prepared.input_ids.shape[1] - prepared.visual_tokens + 64
    promised = getattr(settings.config, "budget", None)
    t, h, w = longest.shape[:3]
    work = Workload(
        (t, h, w),
        kept=1.0 if promised is None else float(promised),
        start_layer=getattr(settings.config, "start_layer", 0),
        text_tokens=around + math.ceil(newlines * longest.numel() / features.tensor.numel()),
        new_tokens=generation.max_new_tokens,
        batch_size=arguments.batch_size,
        keep=arguments.keep,
        eager=arguments.attn_implementation == "eager",
    )
    yield from memory_lines(model, work, settings.video.max_frames, gpus, gpu_memory, four_bit=arguments.load_in_4bit)
    if settings.config is not None and work.kept == 1:
        yield "note: thresholds promise no share for a single video, so all tokens are counted; budget=... does"
    if arguments.host_cache_gb:
        yield f"host memory: up to {arguments.host_cache_gb:g} GiB for older prefixes (host_cache_gb)"

    yield from _downloads(files, preview.data_set)
    given = ",".join(f"{name}={value}" for name, value in values.items())
    more = f" --gen_kwargs {gen_kwargs}" if gen_kwargs else ""
    yield (
        f"run it: sttm-lmms eval --model sttm_{family.name} --model_args {given} --tasks {task}{more} "
        "--log_samples --output_path runs/"
    )


def _video_of(path: Path | None, settings: VideoSettings) -> tuple[VideoInfo, str]:
    """A file, or an assumed video and why it had to be assumed."""
    if path is None:
        return long_video(settings), "no video is known before the data are there"
    try:
        return probe(path), ""
    except VideoError as error:
        return long_video(settings), str(error)


def _in_words(config: Any) -> str:
    """The settings that are not None."""
    if config is None:
        return "none (method=none)"
    given = ((f.name, getattr(config, f.name)) for f in fields(config))
    return f"{type(config).__name__}({', '.join(f'{name}={value!r}' for name, value in given if value is not None)})"


def _check_reduction(method: Any, prepared: PreparedInput, config: Any, newline: str | None) -> None:
    if method is None:
        return
    if not prepared.spans:
        raise ValueError(
            f"newline={newline!r} puts tokens between the rows or frames of a video, so it cannot be reduced; "
            "use newline=no_token (the published setting) or one_token"
        )
    layers, start = config.get_text_config().num_hidden_layers, getattr(method, "start_layer", 0)
    if start >= layers:
        raise ValueError(f"start_layer={start} is no layer of this decoder; it has layers 0 to {layers - 1}")


_NOT_GENERATION = (
    "transformers_version",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "_from_model_config",
)
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p")


def effective_settings(
    settings: GenerationSettings, asked: Mapping[str, Any], checkpoint: Any
) -> Iterator[tuple[str, Any, str]]:
    """``(name, value, source)`` of every setting of ``generate`` that is not left at what
    transformers does by itself.

    Args:
        settings: of the requests.
        asked: what the task (and ``--gen_kwargs``) holds.
        checkpoint: the model's ``generation_config``.
    """
    own = {name: value for name, value in checkpoint.to_diff_dict().items() if name not in _NOT_GENERATION}
    given = {"until": list(settings.until), **settings.arguments()}
    for name in dict.fromkeys([*given, *own]):
        if name in _SAMPLING and not settings.do_sample:
            if name in own or asked.get(name):
                source = "checkpoint" if name in own else "task"
                yield name, "none (greedy)", f"sttm-lmms; the {source} has {own.get(name, asked.get(name))}"
        elif name not in given:
            yield name, own[name], "checkpoint"
        elif given[name] not in (None, []):
            yield name, given[name], "task" if name in asked else "sttm-lmms"


def _downloads(files: CheckpointFiles, data_set: str) -> Iterator[str]:
    weights = sum(files.missing.values())
    yield f"to download: weights {weights / 1e9:.1f} GB in {len(files.missing)} files" if weights else "weights: here"
    if data_set:
        size = _data_set_bytes(data_set)
        unknown = "of a size that the hub did not tell (offline, gated or misspelt?)"
        known = unknown if size is None else f"{size / 1e9:.1f} GB"
        yield f"to download: data set {data_set}, {known}, where it is not in the cache"


def _data_set_bytes(name: str) -> int | None:
    try:
        found: Any = hub.HfApi().dataset_info(name, files_metadata=True, timeout=20)
    except Exception:  # offline, gated, not there: unrelated types, and a size that is not known stops nothing
        return None
    return sum(int(s.size or 0) for s in found.siblings or [])
