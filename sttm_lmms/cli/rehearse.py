"""``sttm-lmms rehearse MODEL --task T``: everything a run will do, short of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sttm_lmms.errors import STTMError

if TYPE_CHECKING:
    from sttm_lmms.families.base import Family
    from sttm_lmms.model_wrappers.arguments import WrapperArguments
    from sttm_lmms.model_wrappers.preview import TaskPreview
    from sttm_lmms.model_wrappers.settings import TaskSettings
    from sttm_lmms.rehearsal import CheckpointFiles, InForce, Rendered, Sight
    from sttm_lmms.runtime.memory import Needs

_ASSUMED_GIB = 80.0


def rehearse(
    model: Annotated[str, typer.Argument(help="Hub id or folder of a checkpoint.")],
    task: Annotated[str, typer.Option(help="A task of lmms-eval or of ours, such as vnbench.")],
    budget: Annotated[float | None, typer.Option(help="Share of visual tokens to keep. Default: all.")] = None,
    preset: Annotated[str | None, typer.Option(help="Such as paper-50, instead of a budget.")] = None,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs that one model is spread over (device_map=auto).")] = 1,
    gpu_memory: Annotated[
        float | None, typer.Option(help=f"GiB of each GPU. Default: this machine's, or {_ASSUMED_GIB:g}.")
    ] = None,
    model_args: Annotated[str, typer.Option(help="More of what --model_args will hold.")] = "",
    gen_kwargs: Annotated[str, typer.Option(help="What --gen_kwargs will hold.")] = "",
    include_path: Annotated[Path | None, typer.Option(help="Folder of task files. Default: ours.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    family: Annotated[
        str | None, typer.Option(help="llava_video or llava_onevision, where the files say neither.")
    ] = None,
) -> None:
    """Check a run before it costs anything: checkpoint, task, prompt, frames, generation settings and memory.

    Nothing is loaded, and of a hub id no weights are downloaded. Status 1 and a sentence if the run would fail.
    """
    import datasets
    from loguru import logger
    from transformers.utils import logging

    logger.disable("lmms_eval")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    plan = _Plan(model, task, budget, preset, gpus, gpu_memory, model_args, gen_kwargs, include_path, revision, family)
    for line in perform(plan):
        typer.echo(line)


@dataclass(frozen=True)
class _Plan:
    """What was asked for."""

    model: str
    task: str
    budget: float | None = None
    preset: str | None = None
    gpus: int = 1
    gpu_memory: float | None = None
    model_args: str = ""
    gen_kwargs: str = ""
    include_path: Path | None = None
    revision: str | None = None
    family: str | None = None

    def values(self) -> dict[str, Any]:
        """As ``--model_args`` would give them to the wrapper."""
        from sttm_lmms.model_wrappers.preview import simple_parse_args_string

        values: dict[str, Any] = {"pretrained": self.model, **simple_parse_args_string(self.model_args)}
        asked = {"budget": self.budget, "preset": self.preset, "revision": self.revision}
        values |= {name: value for name, value in asked.items() if value is not None}
        if self.gpus > 1:
            values.setdefault("device_map", "auto")
        if not {"method", "budget", "preset", "spatial_threshold", "temporal_threshold"} & values.keys():
            values["method"] = "none"
        return values


def perform(plan: _Plan) -> Iterator[str]:
    """The report, line by line, each as soon as it is known.

    Raises:
        STTMError, ValueError: the run would fail; the message says why and what to do.
    """
    from sttm_lmms.cli.evaluate import tasks_folder
    from sttm_lmms.families import get_family, layout_of
    from sttm_lmms.families.checkpoint import resolve_checkpoint
    from sttm_lmms.model_wrappers.arguments import parse_arguments, refused_arguments
    from sttm_lmms.model_wrappers.preview import preview_task
    from sttm_lmms.model_wrappers.settings import task_settings
    from sttm_lmms.rehearsal import gather, in_force, render_prompt, sight_of
    from sttm_lmms.rehearsal.video import longest

    found, layout = layout_of(resolve_checkpoint(plan.model, revision=plan.revision, files=["config.json"]))
    family = get_family(plan.family) if plan.family else found
    values = plan.values()
    revision = values.pop("revision", None)
    arguments = parse_arguments(values, refused=refused_arguments(family))
    preview = preview_task(plan.task, str(plan.include_path or tasks_folder()), plan.gen_kwargs)
    settings = task_settings(arguments, family.name, plan.task)

    files = gather(plan.model, revision)
    empty: Any = family.load_model(files.folder, headers=files.headers, dtype=_dtype(arguments))
    processor = family.load_processor(files.folder, empty)
    yield from _checkpoint_lines(plan, files, family, layout, empty)

    sight = sight_of(family.name, empty.config, preview.video, settings.video)
    newline = arguments.newline or ("no_token" if settings.config is not None else None)
    prompt = render_prompt(family, empty.config, processor, preview.messages, sight, newline)
    yield from _document_lines(preview, sight, prompt, settings)
    _check_reduction(settings, prompt, empty.config, newline)
    yield from _generation_lines(in_force(_generation(preview), preview.generation, empty.generation_config))

    most = longest(family.name, empty.config, sight, settings.video)
    yield from _memory_lines(plan, arguments, settings, empty, most, prompt, _generation(preview).max_new_tokens)
    yield from _download_lines(files, preview)
    yield f"run it: {_command(plan, family, values)}"


def _dtype(arguments: WrapperArguments) -> Any:
    import torch

    return torch.bfloat16 if arguments.dtype == "auto" else getattr(torch, arguments.dtype)


def _generation(preview: TaskPreview) -> Any:
    from sttm_lmms.model_wrappers.documents import generation_settings

    return generation_settings(preview.generation)


def _checkpoint_lines(plan: _Plan, files: CheckpointFiles, family: Family, layout: str, model: Any) -> Iterator[str]:
    shards = {header.file for header in files.headers.values()}
    parameters = model.num_parameters()
    yield (
        f"checkpoint: {plan.model}: {family.name}, {layout} layout, {parameters:,} parameters; "
        f"all {len(files.headers)} tensors in {len(shards)} files fit the model by name and shape"
    )


def _document_lines(preview: TaskPreview, sight: Sight, prompt: Rendered, settings: TaskSettings) -> Iterator[str]:
    number = "unknown number of" if preview.questions is None else f"{preview.questions:,}"
    yield f"task: {preview.name}: {number} questions"
    t, h, w = sight.grid
    info, video = sight.info, settings.video
    yield (
        f"frames: {sight.metadata['num_frames']} of {info.total_frames:,} "
        f"(at most {video.max_frames} at {video.fps:g} a second), {info.width}x{info.height} pixels, "
        f"a grid of {t}x{h}x{w} tokens"
    )
    if sight.assumed:
        yield f"note: these are assumptions: {sight.assumed}"
    yield (
        f"tokens: {prompt.tokens:,} in the prompt, {prompt.visual:,} of them visual ({prompt.newlines:,} newlines); "
        f"the first {prompt.shared:,} are shared by the questions of a video"
    )
    yield f"reduction: {_in_words(settings.config)}"
    yield "prompt of the first document:"
    yield from (f"  | {line}" for line in prompt.text.splitlines())


def _in_words(config: Any) -> str:
    """The settings that are not None."""
    if config is None:
        return "none (method=none)"
    given = ((f.name, getattr(config, f.name)) for f in fields(config))
    return f"{type(config).__name__}({', '.join(f'{name}={value!r}' for name, value in given if value is not None)})"


def _check_reduction(settings: TaskSettings, prompt: Rendered, config: Any, newline: str | None) -> None:
    if settings.config is None:
        return
    if not prompt.reducible:
        raise ValueError(
            f"newline={newline!r} puts tokens between the rows or frames of a video, so it cannot be reduced; "
            "use newline=no_token (the published setting) or one_token"
        )
    layers = config.get_text_config().num_hidden_layers
    start = getattr(settings.config, "start_layer", 0)
    if start >= layers:
        raise ValueError(f"start_layer={start} is no layer of this decoder; it has layers 0 to {layers - 1}")


def _generation_lines(found: list[InForce]) -> Iterator[str]:
    yield "generation settings in force:"
    yield from (f"  {item.name} = {item.value}  ({item.source})" for item in found)


def _memory_lines(
    plan: _Plan,
    arguments: WrapperArguments,
    settings: TaskSettings,
    model: Any,
    sight: Sight,
    prompt: Rendered,
    new_tokens: int,
) -> Iterator[str]:
    from sttm_lmms.rehearsal import spread
    from sttm_lmms.runtime.memory import GIB, Work, predict, sizes_of, table

    limit, source = _gpu_bytes(plan)
    sizes = sizes_of(model, _dtype(arguments).itemsize, vision=not arguments.features, four_bit=arguments.load_in_4bit)
    work = Work(
        sight.grid,
        kept=kept_share(settings.config),
        start_layer=getattr(settings.config, "start_layer", 0),
        text_tokens=prompt.tokens - prompt.visual + 64,  # other questions may be longer
        extra_tokens=_newlines(prompt, sight),
        new_tokens=new_tokens,
        batch_size=arguments.batch_size,
        keep=arguments.keep,
        eager=arguments.attn_implementation == "eager",
    )
    parts = spread(model, sizes, plan.gpus, limit)
    needs = {device: predict(sizes, work, part) for device, part in parts.items()}
    frames = settings.video.max_frames
    yield f"memory on {plan.gpus} GPU(s) of {limit / GIB:.0f} GiB ({source}), for a video of {frames} frames:"
    yield from (f"  {' '.join(cell.rjust(11) for cell in row)}" for row in table(needs))
    if settings.config is not None and work.kept == 1:
        yield "note: thresholds promise no share for a single video, so all tokens are counted; budget=... does"
    if arguments.host_cache_gb:
        yield f"host memory: up to {arguments.host_cache_gb:g} GiB for older prefixes (host_cache_gb)"
    full = {device: need for device, need in needs.items() if need.total > limit}
    if full:
        raise STTMError(_too_large(full, limit, sizes, work, plan.gpus, frames))


def kept_share(config: Any) -> float:
    """The share of visual tokens that a reduction promises for each video; 1 where it promises none."""
    share = getattr(config, "budget", None)
    return float(share) if share is not None else 1.0


def _newlines(prompt: Rendered, sight: Sight) -> int:
    """Newline tokens of the longest video, of which the first document's has its share for each frame."""
    visual = prompt.visual - prompt.newlines
    t, h, w = sight.grid
    return prompt.newlines if prompt.newlines <= 1 else round(prompt.newlines * t * h * w / visual)


def _gpu_bytes(plan: _Plan) -> tuple[int, str]:
    import torch

    from sttm_lmms.runtime.memory import GIB

    if plan.gpu_memory is not None:
        return int(plan.gpu_memory * GIB), "--gpu-memory"
    if torch.cuda.is_available():
        sizes = [torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())]
        return min(sizes), "this machine's"
    return int(_ASSUMED_GIB * GIB), "assumed, there is none here; --gpu-memory says another size"


def _too_large(full: Mapping[str, Needs], limit: int, sizes: Any, work: Any, gpus: int, frames: int) -> str:
    from sttm_lmms.runtime.memory import GIB, largest_fit, ways_out

    device, need = max(full.items(), key=lambda item: item[1].total)
    lack = f"{device} would need {need.total / GIB:.1f} GiB and has {limit / GIB:.0f}"
    if need.weights >= limit:
        return (
            f"{lack}: the weights alone are too large: --gpus N spreads the model over more of them, "
            "--model-args load_in_4bit=True makes it smaller"
        )
    fit = largest_fit(sizes, work, limit) if gpus == 1 else None
    would = f"; max_frames={fit * frames // work.grid[0]} would fit" if fit else ""
    return f"{lack}: lower {' or '.join(ways_out(work))}{would}"


def _download_lines(files: CheckpointFiles, preview: TaskPreview) -> Iterator[str]:
    from sttm_lmms.rehearsal.files import data_set_bytes

    weights = sum(files.missing.values())
    yield f"to download: weights {weights / 1e9:.1f} GB in {len(files.missing)} files" if weights else "weights: here"
    if preview.data_set:
        size = data_set_bytes(preview.data_set)
        known = (
            "of a size that the hub did not tell (offline, gated or misspelt?)"
            if size is None
            else f"{size / 1e9:.1f} GB"
        )
        yield f"to download: data set {preview.data_set}, {known}, where it is not in the cache"


def _command(plan: _Plan, family: Family, values: Mapping[str, Any]) -> str:
    arguments = ",".join(f"{name}={value}" for name, value in values.items())
    gen = f" --gen_kwargs {plan.gen_kwargs}" if plan.gen_kwargs else ""
    return (
        f"sttm-lmms eval --model sttm_{family.name} --model_args {arguments} --tasks {plan.task}{gen} "
        "--log_samples --output_path runs/"
    )
