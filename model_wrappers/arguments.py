"""What ``--model_args`` may hold: read strictly by type, unknown names and values refused."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from sttm_lmms.benchmarks.presets import BLIND, FIELD
from sttm_lmms.errors import unknown
from sttm_lmms.families.base import Family
from sttm_lmms.methods import get_method, method_names

AtLeastOne = Annotated[int, Field(ge=1)]
_SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


@dataclass(frozen=True)
class WrapperArguments:
    """Arguments of every wrapper; the settings of the reduction method come on top.

    Attributes:
        pretrained: hub id or local folder, in the original or in the Hugging Face layout.
        revision: branch, tag or commit on the hub.
        method: name in the methods registry, or ``none`` for the baseline.
        preset: name of published thresholds, such as ``paper-50``, resolved for each task; or
            ``field-32`` or ``field-64``, so many frames of every video.
        video: ``official`` for the maker's own frames, fps and pixel limits, ``frames-16`` (or
            another number) for so many frames of every video; by default those of the published
            runs. ``none`` shows no video: what the questions alone give away.
        phase: share of a step, in [0, 1), by which all frames are taken later.
        max_frames, fps: frame sampling; by default those of ``video``, of the preset or of the
            family.
        sampling: which frames: ``uniform_fps`` (the published runs'; default of our tasks and of
            presets) or ``model``.
        newline: newline mode of the LLaVA family; by default the checkpoint's without reduction,
            ``no_token`` with it.
        attn_implementation: by default what transformers picks.
        dtype: ``auto`` is bfloat16 on CUDA, float16 on MPS, float32 on CPU.
        device: such as ``cuda:1``; by default CUDA, MPS or CPU, and the process' own device under
            accelerate.
        device_map: ``auto`` and the like of transformers, to spread one model over several devices.
        batch_size: questions answered together.
        max_batch_size: no more than these, whatever ``batch_size`` says (lmms-eval's
            ``--max_batch_size``).
        video_backend: who decodes the videos.
        video_timeout: seconds after which a video is given up; 0 for no limit.
        reproduce: fixed seeds and deterministic kernels.
        on_error: ``skip`` answers a question on an unreadable video with nothing and counts it;
            ``raise`` stops.
        reuse: what the questions of one video share.
        keep: videos whose prefix (or features) is held at a time.
        host_cache_gb: host memory for the prefixes of more videos, for runs that come back to them.
        prefetch: videos that are decoded and preprocessed ahead, in threads; 0 for none.
        prefetch_workers: those threads; by default one for each video, and no more than there are
            CPU cores.
        features: folder of stored features; no video is opened then.
        min_pixels, max_pixels: frame size, Qwen families only.
        cache: folder that keeps answers as they come; what is there already is not asked again
            (``--use_cache`` of ``sttm-lmms eval``).
        load_in_4bit: NF4 weights, computed in ``dtype``; bitsandbytes through transformers.
        method_settings: settings of the method, by name.
    """

    pretrained: str
    revision: str | None = None
    method: str = "sttm"
    preset: str | None = None
    video: str | None = None
    max_frames: int | None = None
    fps: float | None = None
    phase: float | None = None
    sampling: Literal["model", "uniform_fps"] | None = None
    newline: Literal["grid", "frame", "one_token", "no_token"] | None = None
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str | None = None
    device_map: str | None = None
    batch_size: AtLeastOne = 1
    max_batch_size: AtLeastOne | None = None
    video_backend: Literal["auto", "pyav", "torchcodec", "decord"] = "auto"
    video_timeout: float = 120.0
    reproduce: bool = False
    on_error: Literal["skip", "raise"] = "skip"
    reuse: Literal["prefix", "features", "none"] = "prefix"
    keep: AtLeastOne = 1
    host_cache_gb: Annotated[float, Field(ge=0)] = 0.0
    prefetch: Annotated[int, Field(ge=0)] = 2
    prefetch_workers: AtLeastOne | None = None
    features: Path | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    cache: Path | None = None
    load_in_4bit: bool = False
    method_settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def effective_batch_size(self) -> int:
        """Questions answered together."""
        return min(self.batch_size, self.max_batch_size or self.batch_size)

    @property
    def reduction(self) -> str | None:
        """The reduction that was asked for, in words; None for the baseline."""
        if self.method == "none":
            return None
        settings = {**({"preset": self.preset} if self.preset else {}), **self.method_settings}
        return ",".join(f"{name}={value}" for name, value in {"method": self.method, **settings}.items())


Arguments = TypeVar("Arguments", bound=WrapperArguments)


def parse_arguments(values: Mapping[str, Any], *, refused: Collection[str] = ()) -> WrapperArguments:
    """The arguments of every wrapper, see :func:`parse_as`."""
    return parse_as(WrapperArguments, values, refused=refused)


def parse_as(kind: type[Arguments], values: Mapping[str, Any], *, refused: Collection[str] = ()) -> Arguments:
    """Arguments from the strings, numbers and booleans that lmms-eval read from ``--model_args``.

    Args:
        kind: a subclass adds arguments of one wrapper.
        refused: arguments that this family has no use for.

    Raises:
        ValueError: a name or value is unknown, of the wrong type, or does not go with the others.
    """
    own = [f.name for f in fields(kind) if f.name != "method_settings" and f.name not in refused]
    method = str(values.get("method", "sttm"))
    settings = method_hints(method)
    for name in values:
        if name in own or name in settings:
            continue
        if name in refused:
            raise ValueError(f"{name}={values[name]!r} has no meaning for this model family; leave it out")
        # Only now are all methods imported: one that is installed beside this package and broken
        # stops no other run.
        elsewhere = {name for other in method_names() for name in method_hints(other)}
        if name in elsewhere:
            has = ", ".join(sorted(settings)) or "no settings, because nothing is reduced"
            raise ValueError(f"{name}={values[name]!r} is no setting of method={method}, which has {has}")
        raise unknown("argument", name, {*own, *elsewhere})
    if not values.get("pretrained"):
        raise ValueError("pretrained is missing: give a hub id or a checkpoint folder, --model_args pretrained=...")
    chosen = {name: values[name] for name in values if name in settings}
    # A TypedDict, because the method's own class may want settings together that only a preset
    # completes.
    read_settings = _validate(TypedDict("Settings", settings, total=False), chosen, settings)  # type: ignore[operator]
    given = _with_field_frames({name: values[name] for name in values if name in own})
    arguments: Arguments = _validate(kind, given, get_type_hints(kind))
    arguments = replace(arguments, method_settings=read_settings)
    _validate_budget_source(arguments)
    return arguments


def _with_field_frames(values: dict[str, Any]) -> dict[str, Any]:
    """A preset of frames alone, such as ``field-32``, as the video settings that it stands for."""
    preset = values.get("preset")
    if preset not in FIELD:
        return values
    if values.get("video") is not None:
        raise ValueError(f"preset={preset!r} is video={FIELD[preset]!r}: leave out video={values['video']!r}")
    return {**values, "preset": None, "video": FIELD[preset]}


def refused_arguments(family: Family) -> tuple[str, ...]:
    """Arguments that have no meaning for a family."""
    newline = () if family.newlines else ("newline",)
    return newline if family.pixel_limits else (*newline, "min_pixels", "max_pixels")


def _validate_budget_source(arguments: WrapperArguments) -> None:
    """STTM needs to know how much to merge, from exactly one source; so do the frames."""
    if arguments.method_settings.get("budget") == 1:
        raise ValueError("budget=1 keeps all tokens, so nothing is reduced; method=none is that baseline")
    if arguments.video == BLIND and arguments.method != "none":
        raise ValueError(f"video={BLIND!r} leaves nothing to reduce: give method=none beside it")
    if arguments.phase and arguments.features:
        raise ValueError(f"phase={arguments.phase:g} takes other frames than those whose features are stored")
    if arguments.preset and arguments.video:
        raise ValueError(
            f"preset={arguments.preset!r} holds the frames that its thresholds were found with: leave out "
            f"video={arguments.video!r}, or give budget instead of the preset"
        )
    sources = {"preset", "budget", "spatial_threshold", "temporal_threshold"}
    given = sources & {*arguments.method_settings, *(["preset"] if arguments.preset else [])}
    if arguments.preset and arguments.method != "sttm":
        raise ValueError(f"preset={arguments.preset!r} holds settings of method=sttm, not of method={arguments.method}")
    if "preset" in given and len(given) > 1:
        raise ValueError(f"preset={arguments.preset!r} sets the thresholds: leave out {', '.join(given - {'preset'})}")
    if arguments.method == "sttm" and not given:
        raise ValueError(
            "method=sttm does not know how much to merge: give budget (share of visual tokens to keep, such as "
            "budget=0.5), or spatial_threshold and temporal_threshold, or preset=paper-50 or paper-30; "
            "method=none is the baseline that merges nothing"
        )


def method_hints(method: str) -> dict[str, Any]:
    """Names and types of a method's settings; empty for ``none``. An unknown method is a
    ``ValueError``."""
    if method == "none":
        return {}
    cls = get_method(method)
    hints = get_type_hints(cls)
    return {f.name: hints[f.name] for f in fields(cls) if f.init}


def _validate(kind: Any, values: Mapping[str, Any], hints: Mapping[str, Any]) -> Any:
    """``values`` as a ``kind``, each read from its text by the type of its name.

    Raises:
        ValueError: naming the argument, its value and what it may be.
    """
    texts = {name: _text(value, hints[name]) for name, value in values.items()}
    for name, text in texts.items():
        if hints[name] is bool and str(text).lower() not in ("true", "false"):  # pydantic takes 1 and "on" as well
            raise ValueError(f"{name}={values[name]!r} is not valid; it must be True or False")
    try:
        return TypeAdapter(kind).validate_strings({name: text for name, text in texts.items() if text is not None})
    except ValidationError as error:
        problem = error.errors()[0]
        name = str(problem["loc"][0])
        raise _explain(name, values[name], problem, hints[name]) from None


def _text(value: Any, hint: Any) -> Any:
    if value in (None, "None") and type(None) in get_args(hint):
        return None  # which is the default of all that may be None
    return str(value).strip("()[]").split(":") if hint == tuple[int, ...] else str(value)


def _explain(name: str, value: Any, problem: Mapping[str, Any], hint: Any) -> ValueError:
    kind = problem["type"]
    if kind == "literal_error":
        choices = {
            choice for option in (hint, *get_args(hint)) for choice in get_args(option) if isinstance(choice, str)
        }
        return unknown(name, value, choices)
    meanings = {"int": "an integer", "float": "a number", "path": "a path"}
    meaning = next((meaning for part, meaning in meanings.items() if kind.startswith(part)), "a text")
    if hint == tuple[int, ...]:
        meaning = "integers with colons between them, such as 0:2:4"
    elif bounds := set(_SIGNS) & set(problem.get("ctx", ())):
        (bound,) = bounds
        limit = problem["ctx"][bound]
        meaning = f"{'an integer' if isinstance(limit, int) else 'a number'} {_SIGNS[bound]} {limit:g}"
    return ValueError(f"{name}={value!r} is not valid; it must be {meaning}")
