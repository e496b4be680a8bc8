"""The record of the file that features were made from, so that another video of the same name is
not taken for it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def file_record(path: str | Path) -> dict[str, Any]:
    """Size, time of change and SHA-256 of a file, as plain values. Raises ``OSError``."""
    status = Path(path).stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": _sha256(path)}


def is_source(metadata: Mapping[str, Any], path: str | Path) -> bool:
    """Whether features with this ``metadata`` were made from the file ``path`` or a copy of it.

    True as well where nobody can say: published features name no file, and the video may be gone.
    The file is read only where its time is another one.
    """
    record = metadata.get("source")
    try:
        status = Path(path).stat()
        if record is None:
            return True
        if status.st_size != record["size"]:
            return False
        return bool(status.st_mtime_ns == record["mtime_ns"] or _sha256(path) == record["sha256"])
    except OSError:
        return True


def _sha256(path: str | Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
