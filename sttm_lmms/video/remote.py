"""Files named by a URL: ``file://`` is a path, what is behind ``http://`` and ``https://`` is
fetched once."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path, PurePosixPath
from urllib.parse import urlparse
from urllib.request import Request, url2pathname, urlopen

from filelock import FileLock
from huggingface_hub import constants

from sttm_lmms.errors import VideoError

_TIMEOUT_S = 60.0


def local_file(source: str | Path) -> str | Path:
    """The file that a path or a URL names.

    Raises:
        VideoError: it cannot be fetched.
    """
    name = str(source)
    if name.startswith("file://"):
        return url2pathname(urlparse(name).path)
    return fetch(name) if name.startswith(("http://", "https://")) else source


def fetch(url: str, folder: Path | None = None) -> Path:
    """The file behind ``url``, below ``folder`` (by default beside the hub's cache); by one process
    at a time.

    Raises:
        VideoError: it cannot be had.
    """
    folder = Path(constants.HF_HOME).expanduser() / "sttm_lmms" / "fetched" if folder is None else folder
    suffix = PurePosixPath(urlparse(url).path).suffix
    path = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:32]}{suffix}"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if path.is_file():
            return path
        partial = path.with_name(f"{path.name}.part")
        try:
            with (
                urlopen(Request(url, headers={"User-Agent": "sttm-lmms"}), timeout=_TIMEOUT_S) as answer,
                partial.open("wb") as file,
            ):
                shutil.copyfileobj(answer, file)
        except OSError as error:
            raise VideoError(url, f"cannot be fetched: {error}") from error
        os.replace(partial, path)
    return path
