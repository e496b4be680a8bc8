"""Checkpoint folders: finding them, reading their headers, and loading them so that nothing is
silently left out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from sttm_lmms.errors import CheckpointError
from sttm_lmms.families.hub import hub_sentence

# Everything a checkpoint needs, and no second copy of the weights (*.bin, *.pth, gguf).
HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.jinja", "*.model")

# Tensors that old files carry and no current model has: buffers, and SigLIP's pooling head.
_UNUSED = re.compile(r"rotary_emb\.inv_freq$|embeddings\.position_ids$|vision_tower\.(?:.*\.)?head\.")
# Parameters of the model that are never used: the tower's output is taken in front of its last
# norm.
_OPTIONAL = re.compile(r"vision_tower\.(?:vision_model\.)?post_layernorm\.")


class TensorHeader(NamedTuple):
    """A tensor as a safetensors header describes it; nothing of it has been read."""

    name: str
    shape: tuple[int, ...]
    file: str


def resolve_checkpoint(
    path_or_id: str | Path, *, revision: str | None = None, files: Sequence[str] = HUB_FILES
) -> Path:
    """The local folder of a checkpoint; of a hub id, the given files are downloaded (where they are
    not there yet).

    Raises:
        CheckpointError: neither a folder nor a hub id that can be had, or a revision of a folder.
    """
    folder = Path(path_or_id).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise CheckpointError(f"{folder} is a local folder; revision={revision!r} belongs to hub ids, leave it out")
        return folder
    name = str(path_or_id)
    if folder.exists():
        raise CheckpointError(f"{name} is a file; give the folder that holds config.json")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise CheckpointError(f"{name}: no such folder, and not a hub id of the form owner/name")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except Exception as error:  # the hub client raises many unrelated types: network, permission, cache, no such id
        raise CheckpointError(hub_sentence(name, error, revision)) from error


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises :class:`CheckpointError` if it is absent or broken."""
    if not file.is_file():
        raise CheckpointError(f"{file.parent}: no {file.name}; a checkpoint folder holds {file.name} and *.safetensors")
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file}: not valid JSON ({error}); download it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: a JSON object was expected, found {type(value).__name__}")
    return value


def read_headers(folder: Path) -> dict[str, TensorHeader]:
    """Name, shape and file of every tensor of a checkpoint, from the headers of its safetensors
    files.

    Raises:
        CheckpointError: no safetensors, a shard or tensor that the index lists is absent, or a
            truncated file.
    """
    index = folder / "model.safetensors.index.json"
    listed: Mapping[str, str] = {}
    if index.is_file():
        listed = read_json(index).get("weight_map", {})
        files = sorted(set(listed.values()))
    elif (folder / "model.safetensors").is_file():
        files = ["model.safetensors"]
    else:
        raise CheckpointError(_no_weights(folder))
    headers: dict[str, TensorHeader] = {}
    for file in files:
        if not (folder / file).is_file():
            raise CheckpointError(f"{folder / file} is missing, but {index.name} lists it; download it again")
        try:
            with safe_open(folder / file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                    headers[name] = TensorHeader(name, tuple(tensors.get_slice(name).get_shape()), file)
        except SafetensorError as error:
            raise CheckpointError(f"{folder / file}: truncated or broken ({error}); download it again") from error
    for name, file in listed.items():
        if name not in headers or headers[name].file != file:
            raise CheckpointError(
                f"{index} lists {name} in {file}, which does not hold it; download the index and that file again"
            )
    return headers


def _no_weights(folder: Path) -> str:
    if any(folder.glob("*.bin")):
        return (
            f"{folder}: only pickled weights (*.bin), which can run code when they are read. Load them once with the "
            "code they came from and write them with model.save_pretrained(..., safe_serialization=True)"
        )
    if any(folder.glob("*.safetensors")):
        return f"{folder}: shards without model.safetensors.index.json; download the index as well"
    return f"{folder}: no model.safetensors and no model.safetensors.index.json"


class CheckpointFiles(NamedTuple):
    """A checkpoint as far as it is known without its weights."""

    folder: Path
    """Holds configuration and tokenizer, and the weights if they are there."""
    headers: Mapping[str, TensorHeader]
    """Of all tensors, by their name in the files."""
    missing: Mapping[str, int]
    """Bytes of each weight file that a run would download."""


def fetch_headers(checkpoint: str, revision: str | None = None) -> CheckpointFiles:
    """Small files and tensor headers of a local folder or a hub id. Of the hub's weights, only
    headers are fetched.

    Raises:
        CheckpointError: it cannot be had, a shard is missing or truncated, or the hub has no
            safetensors.
    """
    small = [pattern for pattern in HUB_FILES if pattern != "*.safetensors"]
    folder = resolve_checkpoint(checkpoint, revision=revision, files=small)
    if Path(checkpoint).expanduser().is_dir():
        return CheckpointFiles(folder, read_headers(folder), {})
    try:
        return CheckpointFiles(folder, read_headers(folder), {})  # all in the hub cache
    except CheckpointError:
        return CheckpointFiles(folder, *_headers_of_hub(checkpoint, revision, folder))


def _headers_of_hub(name: str, revision: str | None, folder: Path) -> tuple[dict[str, TensorHeader], dict[str, int]]:
    import huggingface_hub as hub

    try:
        files = hub.get_safetensors_metadata(name, revision=revision).files_metadata
        siblings = hub.HfApi().model_info(name, revision=revision, files_metadata=True).siblings or []
    except Exception as error:  # network, permission, no safetensors: unrelated types
        raise CheckpointError(
            f"{name}: the hub did not give the headers of its safetensors files ({type(error).__name__}: {error}); "
            "try again, or download the checkpoint and give its folder"
        ) from error
    headers = {
        tensor: TensorHeader(tensor, tuple(info.shape), file)
        for file, content in files.items()
        for tensor, info in content.tensors.items()
    }
    weights = [sibling for sibling in siblings if sibling.rfilename.endswith(".safetensors")]
    missing = {s.rfilename: int(s.size or 0) for s in weights if not (folder / s.rfilename).is_file()}
    return headers, missing


def check_tensors(
    folder: Path,
    found: Mapping[str, TensorHeader],
    expected: Mapping[str, tuple[int, ...]],
    *,
    optional: Iterable[str] = (),
    unused: Callable[[str], bool] = lambda name: False,
) -> None:
    """Compare a checkpoint with the model it should fill, before anything is loaded.

    Args:
        found: the headers by the name each tensor has in the model.
        expected: shape by name of everything the model has.
        optional: names that may be missing (tied or never used).
        unused: whether a name may be in the files although the model has no place for it.

    Raises:
        CheckpointError: lists every missing, unexpected and mis-shaped tensor (up to a dozen of
            each).
    """
    missing = [name for name in expected if name not in found and name not in set(optional)]
    extra = [header for name, header in found.items() if name not in expected and not unused(name)]
    shaped = [(h, expected[n]) for n, h in found.items() if n in expected and h.shape != expected[n]]
    _raise_if_any(
        folder,
        [f"missing: {name} {list(expected[name])}" for name in missing],
        [f"unexpected: {h.name} {list(h.shape)} in {h.file}" for h in extra],
        [f"mis-shaped: {h.name} is {list(h.shape)} in {h.file}, expected {list(shape)}" for h, shape in shaped],
    )


def _raise_if_any(folder: Path, *groups: list[str], limit: int = 12) -> None:
    lines = []
    for group in groups:
        lines += group[:limit]
        if len(group) > limit:
            lines.append(f"... and {len(group) - limit} more of this kind")
    if lines:
        listing = "\n  ".join(lines)
        raise CheckpointError(
            f"{folder}: the tensors do not fit the model that config.json describes\n  {listing}\n"
            "Check that config.json and the weights belong together and that the download is complete"
        )


def load_model(
    model_class: type[PreTrainedModel],
    folder: Path,
    *,
    config: PreTrainedConfig | None = None,
    key_mapping: dict[str, str] | None = None,
    checked: bool = False,
    headers: Mapping[str, TensorHeader] | None = None,
    **kwargs: Any,
) -> PreTrainedModel:
    """``from_pretrained`` that turns a tensor it could not place into an error instead of a
    warning.

    Tensors go from the (memory-mapped) shard straight to their device one by one, so that
    ``device_map``, offloading and quantisation are transformers' own.

    Args:
        key_mapping: regular expression -> replacement, applied to the names in the files.
        checked: the caller has compared the headers (:func:`check_tensors`); only missing tensors
            are looked for.
        headers: of the tensors. The model is then built on the meta device, by the same steps but
            without any weights; the folder needs no more than ``*.json``.
        kwargs: for ``from_pretrained``; ``load_in_4bit`` / ``load_in_8bit`` become a
            ``BitsAndBytesConfig``.

    Raises:
        CheckpointError: a missing, unexpected or mis-shaped tensor.
    """
    source: Path | None = folder
    kwargs = _with_quantization(folder, kwargs)
    if headers is None:
        headers = read_headers(folder)
    else:
        source, config = None, config or getattr(model_class, "config_class").from_pretrained(folder)  # noqa: B009
        empty = {h.name: torch.empty(h.shape, device="meta") for h in headers.values()}
        kwargs |= {"device_map": {"": "meta"}, "state_dict": empty}
    if config is not None:
        kwargs["config"] = config
    loaded: Any = model_class.from_pretrained(
        source, key_mapping=key_mapping, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
    )
    model, info = loaded
    if source is None and (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    missing = [name for name in sorted(info["missing_keys"]) if not _OPTIONAL.search(name)]
    extra, shaped = [], []
    if not checked:
        extra = [name for name in sorted(info["unexpected_keys"]) if not _UNUSED.search(name)]
        shaped = sorted(info["mismatched_keys"])
    _raise_if_any(
        folder,
        [f"missing: {name}" for name in missing],
        [f"unexpected: {name}{_where(headers, name)}" for name in extra],
        [
            f"mis-shaped: {name} is {list(found)}{_where(headers, name)}, expected {list(wanted)}"
            for name, found, wanted in shaped
        ],
    )
    # Without this, save_pretrained would write the names of the files it came from beside a
    # config.json that does not describe them.
    if key_mapping is not None:
        vars(model).pop("_weight_conversions", None)
    return model.eval()


def _where(headers: Mapping[str, TensorHeader], name: str) -> str:
    """`` in FILE`` of a tensor named as in the model; old files lack the leading ``model.``."""
    tail = name.removeprefix("model.").removeprefix("language_model.")
    file = next((h.file for h in headers.values() if h.name == name or h.name.endswith(tail)), None)
    return f" in {file}" if file else ""


def _with_quantization(folder: Path, kwargs: dict[str, Any]) -> dict[str, Any]:
    """``load_in_4bit`` and ``load_in_8bit`` as a ``BitsAndBytesConfig``: the only place that says
    how.

    Four bits are NF4, the type for normally distributed weights (arXiv 2305.14314), computed in the
    model's dtype; bitsandbytes' own defaults are FP4, computed in float32.
    """
    rest = {name: value for name, value in kwargs.items() if name not in ("load_in_4bit", "load_in_8bit")}
    flags = {name: True for name in ("load_in_4bit", "load_in_8bit") if kwargs.get(name)}
    if flags:
        from transformers import BitsAndBytesConfig

        dtype = kwargs.get("dtype", "auto")
        if dtype in ("auto", None):
            config = read_json(folder / "config.json")
            dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
        rest["quantization_config"] = BitsAndBytesConfig(
            **flags, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    return rest


def is_unused(name: str) -> bool:
    """Whether a tensor of a file is known to have no place in the model (see ``check_tensors``)."""
    return bool(_UNUSED.search(name))


def is_optional(name: str) -> bool:
    """Whether a parameter of the model is never used and may be missing."""
    return bool(_OPTIONAL.search(name))
