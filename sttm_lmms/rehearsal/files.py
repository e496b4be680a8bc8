"""What there is of a checkpoint without its weights: small files, and the headers of the large ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sttm_lmms.errors import CheckpointError
from sttm_lmms.families.checkpoint import HUB_FILES, TensorHeader, read_headers, resolve_checkpoint

WEIGHTS = "*.safetensors"
SMALL_FILES = tuple(pattern for pattern in HUB_FILES if pattern != WEIGHTS)


@dataclass(frozen=True)
class CheckpointFiles:
    """A checkpoint, as far as it is looked at.

    Attributes:
        folder: holds configuration and tokenizer, and the weights if they are there.
        headers: of all tensors, by their name in the files.
        missing: bytes of each weight file that a run would download.
    """

    folder: Path
    headers: Mapping[str, TensorHeader]
    missing: Mapping[str, int]


def gather(checkpoint: str, revision: str | None = None) -> CheckpointFiles:
    """Small files and tensor headers of a local folder or a hub id. Of hub weights, only headers are fetched.

    Raises:
        CheckpointError: it cannot be had, a shard is missing or truncated, or the hub has no safetensors.
    """
    folder = resolve_checkpoint(checkpoint, revision=revision, files=SMALL_FILES)
    if Path(checkpoint).expanduser().is_dir():
        return CheckpointFiles(folder, read_headers(folder), {})
    try:
        return CheckpointFiles(folder, read_headers(folder), {})  # all in the hub cache
    except CheckpointError:
        return CheckpointFiles(folder, *_on_the_hub(checkpoint, revision, folder))


def _on_the_hub(name: str, revision: str | None, folder: Path) -> tuple[dict[str, TensorHeader], dict[str, int]]:
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
    missing = {
        s.rfilename: int(s.size or 0)
        for s in siblings
        if s.rfilename.endswith(WEIGHTS[1:]) and not (folder / s.rfilename).is_file()
    }
    return headers, missing


def data_set_bytes(name: str) -> int | None:
    """Bytes of a data set on the hub; None where the hub does not say (offline, gated, or not there)."""
    import huggingface_hub as hub

    try:
        found: Any = hub.HfApi().dataset_info(name, files_metadata=True, timeout=20)
    except Exception:  # as above; a size that is not known stops nothing
        return None
    return sum(int(s.size or 0) for s in found.siblings or [])
