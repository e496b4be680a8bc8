"""Where the exported decoder of a checkpoint lies, so that it is written once."""

from __future__ import annotations

import hashlib
from pathlib import Path

from filelock import FileLock
from huggingface_hub import constants

from sttm_lmms.families.decoder_export import export_decoder


def cache_root() -> Path:
    """The default place: beside the hub's cache, on whose file system hard links to its files are
    possible."""
    return Path(constants.HF_HOME).expanduser() / "sttm_lmms" / "decoders"


def cached_decoder(checkpoint: Path, root: Path | None = None) -> Path:
    """The decoder of ``checkpoint`` as a plain Qwen2 checkpoint below ``root``; written if it is
    not there, by one process at a time.

    Raises:
        CheckpointError: see :func:`~sttm_lmms.families.decoder_export.export_decoder`.
    """
    folder = checkpoint.resolve()
    root = cache_root() if root is None else root.expanduser()
    name = folder.parents[1].name if folder.parent.name == "snapshots" else folder.name
    out = root / f"{name}-{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{out}.lock"):
        return export_decoder(folder, out)
