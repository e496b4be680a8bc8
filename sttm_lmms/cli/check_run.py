"""What a run will do, short of the weights: checkpoint, prompt, frames, generation settings,
memory, downloads."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sttm_lmms.errors import STTMError, VideoError

if TYPE_CHECKING:
    from sttm_lmms.families.base import Family
    from sttm_lmms.families.checkpoint import CheckpointFiles
    from sttm_lmms.runtime import GenerationSettings
    from sttm_lmms.runtime.memory import MemoryEstimate, Workload
    from sttm_lmms.types import Message, PreparedInput, VisionFeatures
    from sttm_lmms.video import VideoInfo, VideoSettings

ASSUMED_GIB = 80.0
_ASSUMED_VIDEO = {"width": 1280, "height": 720, "fps": 30.0}


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
    import torch
    from lmms_eval.utils import simple_parse_args_string

    from sttm_lmms.cli.evaluate import tasks_folder
    from sttm_lmms.families import get_family, layout_of
    from sttm_lmms.families.checkpoint import fetch_headers, resolve_checkpoint
    from sttm_lmms.model_wrappers.arguments import parse_arguments, refused_arguments
    from sttm_lmms.model_wrappers.documents import generation_settings
    from sttm_lmms.model_wrappers.preview import preview_task
    from sttm_lmms.model_wrappers.settings import task_settings
    from sttm_lmms.runtime.memory import Workload

    _silence_lmms_eval()
    spread_out = {"device_map": "auto"} if gpus > 1 else {}
    values = {"pretrained": checkpoint, **spread_out, **simple_parse_args_string(model_args), **values}
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
    model: Any = family.load_model(files.folder, headers=files.headers, dtype=dtype)
    processor = family.load_processor(files.folder, model)
    shards = {header.file for header in files.headers.values()}
    yield (
        f"checkpoint: {checkpoint}: {family.name}, {layout} layout, {model.num_parameters():,} parameters; "
        f"all {len(files.headers)} tensors in {len(shards)} files fit the model by name and shape"
    )

    info, assumed = _video_of(preview.video, settings.video)
    newline = arguments.newline or ("no_token" if settings.config is not None else None)
    features = preview_video(family, model.config, info, settings.video)
    prepared, text = preview_prompt(family, model, processor, preview.messages, features, newline)
    visual = math.prod(features.tensor.shape[:3])
    newlines = prepared.visual_tokens - visual
    number = "unknown number of" if preview.questions is None else f"{preview.questions:,}"
    yield f"task: {preview.name}: {number} questions"
    yield (
        f"frames: {features.metadata['num_frames']} of {info.total_frames:,} (at most {settings.video.max_frames} at "
        f"{settings.video.fps:g} a second), {info.width}x{info.height} pixels, a grid of "
        f"{'x'.join(map(str, features.tensor.shape[:3]))} tokens"
    )
    if assumed:
        yield f"note: these are assumptions: {assumed}"
    yield (
        f"tokens: {prepared.input_ids.shape[1]:,} in the prompt, {prepared.visual_tokens:,} of them visual "
        f"({newlines:,} newlines); the first {prepared.prefix_length:,} are shared by the questions of a video"
    )
    yield f"reduction: {_in_words(settings.config)}"
    yield "prompt of the first document:"
    yield from (f"  | {line}" for line in text.splitlines())
    _check_reduction(settings.config, prepared, model.config, newline)

    yield "generation settings in force:"
    own = model.generation_config
    for name, value, by in effective_settings(generation_settings(preview.generation), preview.generation, own):
        yield f"  {name} = {value}  ({by})"

    frames = settings.video.max_frames
    longest = preview_video(family, model.config, long_video(settings.video, info), settings.video)
    t, h, w = longest.tensor.shape[:3]
    # Other questions may be longer, and the longest video has its share of newlines for each frame.
    around = prepared.input_ids.shape[1] - prepared.visual_tokens + 64
    work = Workload(
        (t, h, w),
        kept=promised_share(settings.config),
        start_layer=getattr(settings.config, "start_layer", 0),
        text_tokens=around + math.ceil(newlines * t * h * w / visual),
        new_tokens=generation_settings(preview.generation).max_new_tokens,
        batch_size=arguments.batch_size,
        keep=arguments.keep,
        eager=arguments.attn_implementation == "eager",
    )
    sizes = {"itemsize": dtype.itemsize, "four_bit": arguments.load_in_4bit}
    yield from memory_lines(model, work, frames, gpus, gpu_memory, **sizes)
    if settings.config is not None and work.kept == 1:
        yield "note: thresholds promise no share for a single video, so all tokens are counted; budget=... does"
    if arguments.host_cache_gb:
        yield f"host memory: up to {arguments.host_cache_gb:g} GiB for older prefixes (host_cache_gb)"
    yield from _downloads(files, preview.data_set)
    given = ",".join(f"{name}={value}" for name, value in values.items())
    generation = f" --gen_kwargs {gen_kwargs}" if gen_kwargs else ""
    yield (
        f"run it: sttm-lmms eval --model sttm_{family.name} --model_args {given} --tasks {task}{generation} "
        "--log_samples --output_path runs/"
    )


def _silence_lmms_eval() -> None:
    import datasets
    from loguru import logger

    logger.disable("lmms_eval")
    datasets.disable_progress_bars()


def _video_of(path: Path | None, settings: VideoSettings) -> tuple[VideoInfo, str]:
    """A file, or an assumed video and why it had to be assumed."""
    from sttm_lmms.video import probe

    if path is None:
        return long_video(settings), "no video is known before the data are there"
    try:
        return probe(path), ""
    except VideoError as error:
        return long_video(settings), str(error)


def promised_share(config: Any) -> float:
    """The share of visual tokens that a reduction promises for each video; 1 where it promises
    none."""
    share = getattr(config, "budget", None)
    return float(share) if share is not None else 1.0


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
    import huggingface_hub as hub

    try:
        found: Any = hub.HfApi().dataset_info(name, files_metadata=True, timeout=20)
    except Exception:  # offline, gated, not there: unrelated types, and a size that is not known stops nothing
        return None
    return sum(int(s.size or 0) for s in found.siblings or [])


def long_video(settings: VideoSettings, like: VideoInfo | None = None) -> VideoInfo:
    """A video of which ``max_frames`` frames are taken, in the size of another one or of 1280x720
    pixels."""
    from sttm_lmms.video import VideoInfo

    seconds = math.ceil(settings.max_frames / settings.fps) + 2
    fps = _ASSUMED_VIDEO["fps"]
    width, height = (like.width, like.height) if like else (_ASSUMED_VIDEO["width"], _ASSUMED_VIDEO["height"])
    return VideoInfo("video.mp4", round(seconds * fps), fps, float(seconds), int(width), int(height))


def preview_video(family: Family, config: Any, info: VideoInfo, settings: VideoSettings) -> VisionFeatures:
    """Features of a video with a single channel: grid ``[T, H, W, 1]`` and what the prompt says
    about it."""
    import torch

    from sttm_lmms.types import VisionFeatures

    shape = family.feature_shape(config, info, settings)
    if len(shape) == 3:  # (T, P, C) in front of the pooling
        side = math.ceil(math.isqrt(shape[1]) / 2)
        shape = (shape[0], side, side)
    t, h, w = shape[:3]
    numbers = family.sample(info, settings)
    seconds = info.seconds(numbers)
    metadata = {
        "vid": Path(info.path).stem,
        "video_time": info.duration,
        "frame_time": ",".join(f"{second:.2f}s" for second in seconds),
        "num_frames": len(numbers),
        "video_sample_fps": len(numbers) / info.duration,
        "video_grid_thw": [t, 2 * h, 2 * w],
        # With a variable rate, times in milliseconds stand for frame numbers.
        "video_fps": info.fps if info.times is None else 1000.0,
        "frame_indices": numbers if info.times is None else [round(1000 * second) for second in seconds],
    }
    return VisionFeatures(torch.zeros(t, h, w, 1), "video", metadata, projected=True)


def preview_prompt(
    family: Family,
    model: Any,
    processor: Any,
    messages: Sequence[Message],
    features: VisionFeatures,
    newline: str | None = None,
) -> tuple[PreparedInput, str]:
    """The prompt for ``messages`` about one video, and its text with each run of visual tokens as
    ``<N video tokens>``.

    ``model``, which has no weights, gets embeddings of one channel meanwhile: ids and lengths
    depend on no more.
    """
    import torch

    embedding, image_newline = model.get_input_embeddings(), getattr(model.model, "image_newline", None)
    try:
        model.set_input_embeddings(torch.nn.Embedding(model.config.get_text_config().vocab_size, 1))
        if image_newline is not None:
            model.model.image_newline = torch.nn.Parameter(torch.zeros(1))
        with torch.inference_mode():
            prepared = family.prepare(model, processor, messages, [features], newline=newline)
    finally:
        model.set_input_embeddings(embedding)
        if image_newline is not None:
            model.model.image_newline = image_newline
    video = getattr(model.config, "video_token_id", model.config.image_token_id)
    pieces = []
    for visual, run in groupby(prepared.input_ids[0].tolist(), key=lambda token: token == video):
        ids = list(run)
        pieces.append(f"<{len(ids):,} video tokens>" if visual else processor.tokenizer.decode(ids))
    return prepared, "".join(pieces)


def check_memory(
    checkpoint: str,
    revision: str | None,
    frames: int,
    budget: float,
    start_layer: int,
    gpus: int,
    gpu_memory: float | None,
) -> Iterator[str]:
    """GiB that a run on videos of ``frames`` frames needs, whatever the task.

    Raises:
        STTMError: that is more than a GPU has, or the checkpoint is not as it should be.
    """
    import torch

    from sttm_lmms.families import layout_of
    from sttm_lmms.families.checkpoint import fetch_headers
    from sttm_lmms.runtime.memory import Workload
    from sttm_lmms.video import VideoSettings

    files = fetch_headers(checkpoint, revision)
    family = layout_of(files.folder)[0]
    model: Any = family.load_model(files.folder, headers=files.headers, dtype=torch.bfloat16)
    settings = VideoSettings(max_frames=frames)
    t, h, w = preview_video(family, model.config, long_video(settings), settings).tensor.shape[:3]
    work = Workload((t, h, w), kept=budget, start_layer=start_layer)
    yield f"{work.visual:,} visual tokens, {round(work.visual * budget):,} kept, bfloat16"
    yield from memory_lines(model, work, frames, gpus, gpu_memory)


def memory_lines(
    model: Any, work: Workload, frames: int, gpus: int, gpu_memory: float | None, **sizes: Any
) -> Iterator[str]:
    """The table of what each GPU needs.

    Args:
        frames: ``max_frames``; a step of ``work.grid`` may be several of them.
        gpu_memory: GiB of each GPU; None takes this machine's.
        sizes: further arguments of :func:`~sttm_lmms.runtime.memory.estimate_memory`.

    Raises:
        STTMError: a GPU is too small; the message says what to lower.
    """
    from sttm_lmms.runtime.memory import GIB, estimate_memory, spread

    limit, source = _gpu_bytes(gpu_memory)
    places = spread(model, gpus, limit)
    needs = estimate_memory(model, work, places=places, **sizes)
    yield f"memory on {gpus} GPU(s) of {limit / GIB:.0f} GiB ({source}), for a video of {frames} frames:"
    kinds = ("weights", "kv", "features", "activations", "allowance", "total")
    yield "  " + " ".join(cell.rjust(11) for cell in ("GiB", *kinds))
    for device, need in needs.items():
        cells = (f"{getattr(need, kind) / GIB:.2f}" for kind in kinds)
        yield "  " + " ".join(cell.rjust(11) for cell in (device, *cells))
    if any(need.total > limit for need in needs.values()):
        raise STTMError(_too_large(model, work, places, needs, limit, frames, **sizes))


def _gpu_bytes(gpu_memory: float | None) -> tuple[int, str]:
    """Memory of a GPU, and who says so."""
    import torch

    if gpu_memory is not None:
        return int(gpu_memory * 2**30), "--gpu-memory"
    if not torch.cuda.is_available():
        return int(ASSUMED_GIB * 2**30), "assumed, there is none here; --gpu-memory says another size"
    sizes = [torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())]
    return min(sizes), "this machine's"


def _too_large(
    model: Any,
    work: Workload,
    places: Mapping[str, str],
    needs: Mapping[str, MemoryEstimate],
    limit: int,
    frames: int,
    **sizes: Any,
) -> str:
    from sttm_lmms.runtime.memory import GIB, estimate_memory, most_frames, suggest_settings

    device, need = max(needs.items(), key=lambda item: item[1].total)
    lack = f"{device} would need {need.total / GIB:.1f} GiB and has {limit / GIB:.0f}"
    if need.weights >= limit:
        return (
            f"{lack}: the weights alone are too large: --gpus N spreads the model over more of them, "
            "--model-args load_in_4bit=True makes it smaller"
        )

    def needed(steps: int) -> int:
        shorter = replace(work, grid=(steps, *work.grid[1:]))
        return max(e.total for e in estimate_memory(model, shorter, places=places, **sizes).values())

    fit = most_frames(needed, limit, work.grid[0])
    would = f"; max_frames={fit * frames // work.grid[0]} would fit" if fit else ""
    ways = suggest_settings(
        batch_size=work.batch_size, keep=work.keep, eager=work.eager, frames=frames, reduced=work.kept < 1
    )
    return f"{lack}: lower {ways}{would}"
