"""Model families: how a checkpoint is loaded, how it sees, and how it is prompted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from sttm_lmms.errors import CheckpointError, UnsupportedModelError, unknown
from sttm_lmms.families.base import Family
from sttm_lmms.families.checkpoint import read_json, resolve_checkpoint
from sttm_lmms.families.glm4v import Glm4v
from sttm_lmms.families.hub import commit_of
from sttm_lmms.families.internvl import InternVL
from sttm_lmms.families.llava import LlavaOneVision, LlavaVideo
from sttm_lmms.families.qwen2_5_vl import Qwen25VL
from sttm_lmms.families.qwen2_vl import Qwen2VL
from sttm_lmms.families.qwen3_5 import Qwen35
from sttm_lmms.families.qwen3_vl import Qwen3VL
from sttm_lmms.families.requirements import check_attention, check_device
from sttm_lmms.families.smolvlm import SmolVLM

__all__ = [
    "ARCHITECTURES",
    "FAMILIES",
    "Family",
    "family_of",
    "family_of_config",
    "find_family",
    "get_family",
    "layout_of",
    "load_pretrained",
]

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        LlavaVideo(),
        LlavaOneVision(),
        Qwen2VL(),
        Qwen25VL(),
        Qwen3VL(),
        Qwen35(),
        Glm4v(),
        InternVL(),
        SmolVLM(),
    )
}

ARCHITECTURES: dict[str, str] = {
    name: layout for family in FAMILIES.values() for name, layout in family.architectures.items()
}
"""Architecture in ``config.json`` -> layout of the checkpoint."""


def get_family(name: str) -> Family:
    """The family of that name. Raises ``ValueError`` with the closest name and the list."""
    if name not in FAMILIES:
        raise unknown("model family", name, FAMILIES)
    return FAMILIES[name]


def family_of(model: nn.Module) -> Family:
    """The family of a loaded transformers model.

    Raises:
        UnsupportedModelError: a model of another architecture.
    """
    supported = [name for name, layout in ARCHITECTURES.items() if layout == "hf"]
    names = [base.__name__ for base in type(model).__mro__]
    architecture = next((name for name in names if name in supported), None)
    if architecture is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} is not supported; supported classes: {', '.join(supported)}"
        )
    config: Any = model.config
    return _family(architecture, config.to_dict(), str(getattr(config, "name_or_path", "")))


def family_of_config(config: Any) -> Family | None:
    """A family that reads inputs of models with this configuration (the two LLaVA ones read the
    same); None if none.

    Args:
        config: of a transformers model.
    """
    return next((family for family in FAMILIES.values() if config.model_type in family.model_types), None)


def layout_of(folder: Path) -> tuple[Family, str]:
    """Family and layout (``"original"`` or ``"hf"``) of a local checkpoint folder, from its
    ``config.json``.

    Raises:
        CheckpointError: no configuration, or an architecture that is not known.
    """
    config = read_json(folder / "config.json")
    names = [str(name) for name in config.get("architectures") or ()]
    for name in names:
        if name in ARCHITECTURES:
            return _family(name, config, str(folder)), ARCHITECTURES[name]
    raise CheckpointError(
        f"{folder}/config.json: architectures {names} are not supported; supported: {', '.join(ARCHITECTURES)}"
    )


def _family(architecture: str, config: Mapping[str, Any], name: str) -> Family:
    return next(family for family in FAMILIES.values() if family.fits(architecture, config, name))


def load_pretrained(
    path_or_id: str | Path,
    *,
    dtype: Any = "auto",
    device_map: Any = None,
    attn_implementation: str | None = None,
    family: str | None = None,
    revision: str | None = None,
    **kwargs: Any,
) -> tuple[nn.Module, Any]:
    """Load a checkpoint of any supported family and layout, told apart by its ``config.json``.

    Args:
        path_or_id: local folder or hub id; the original lmms-lab layout or the Hugging Face layout.
        dtype: torch dtype, its name, or ``"auto"`` (as the checkpoint says).
        device_map: as in transformers: None (CPU), ``"cuda"``, ``"auto"``, a dictionary, ...
        attn_implementation: ``"eager"``, ``"sdpa"``, ``"flash_attention_2"`` or None for
            transformers' choice.
        family: only for a converted LLaVA checkpoint whose files do not say whether it is
            ``llava_video`` or ``llava_onevision``; they are the same architecture with other
            defaults.
        revision: branch, tag or commit on the hub.
        kwargs: for ``from_pretrained``: ``offload_folder``, ``max_memory``,
            ``quantization_config``, ``load_in_4bit=True``, ...

    Returns:
        The model in eval mode and its processor, both stock transformers classes.

    Raises:
        CheckpointError: the folder, its layout or a tensor is not as it should be; the message
            names it.
        STTMError: the device, or the package of the attention implementation, is not there.
    """
    check_device(device_map)
    check_attention(attn_implementation)
    # The configuration first: a checkpoint that is not supported is refused before its weights are
    # downloaded.
    found, commit = find_family(path_or_id, revision=revision)
    wanted = get_family(family) if family else found
    if wanted.architectures != found.architectures:
        raise CheckpointError(f"{path_or_id} is a {found.name} checkpoint and cannot be loaded as {wanted.name}")
    folder = resolve_checkpoint(path_or_id, revision=commit or revision)
    model, processor = wanted.load(
        folder, dtype=dtype, device_map=device_map, attn_implementation=attn_implementation, **kwargs
    )
    if (commit := commit_of(folder)) is not None:
        config: Any = model.config
        config._commit_hash = commit  # where transformers itself keeps it; read by the provenance
    return model, processor


def find_family(path_or_id: str | Path, *, revision: str | None = None) -> tuple[Family, str | None]:
    """The family of a checkpoint, and its commit on the hub; of a hub id, only ``config.json`` is
    downloaded.

    Raises:
        CheckpointError: the checkpoint cannot be had, or its architecture is not known.
    """
    folder = resolve_checkpoint(path_or_id, revision=revision, files=["config.json"])
    return layout_of(folder)[0], commit_of(folder)
