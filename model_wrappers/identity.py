"""What decides an answer, as plain data: the checkpoint, the package, the settings, the video and
the question.

Where something lies does not count: a folder that was moved or copied gives the same identity,
files that were changed under the same names do not.
"""

from __future__ import annotations

import hashlib
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image

import sttm_lmms
from sttm_lmms.families.checkpoint import resolve_checkpoint
from sttm_lmms.model_wrappers.arguments import WrapperArguments
from sttm_lmms.model_wrappers.settings import TaskSettings
from sttm_lmms.runtime import Request

_WHERE_AND_HOW_FAST = frozenset(
    (
        *("pretrained", "revision", "device", "device_map", "cache", "on_error"),
        *("batch_size", "max_batch_size", "keep", "host_cache_gb", "video_timeout", "prefetch", "prefetch_workers"),
        *("tensor_parallel_size", "gpu_memory_utilization", "max_num_seqs", "enforce_eager", "queue_gb"),
        *("decoder_cache", "vllm_python"),
    )
)
"""Arguments that change no answer: a run that was stopped may go on with others, on another
machine."""
_RESOLVED = frozenset(("method", "method_settings", "preset", "video", "max_frames", "fps", "features"))
"""Arguments that count as what they mean for a task: see :func:`task_identity`."""
_DECIDING = ("methods", "runtime", "families", "serving", "video", "decoder.py", "types.py")
"""Parts of this package that decide an answer."""
_READ_WHOLE = 2**24
"""Bytes up to which a file of a checkpoint is told by its content."""


def run_identity(arguments: WrapperArguments, family: str, dtype: torch.dtype) -> dict[str, Any]:
    """What all answers of a run share."""
    deciding = {f.name for f in fields(arguments)} - _WHERE_AND_HOW_FAST - _RESOLVED
    return {
        "family": family,
        "checkpoint": checkpoint_identity(resolve_checkpoint(arguments.pretrained, revision=arguments.revision)),
        "package": _package_source(),
        "transformers": metadata.version("transformers"),
        "arguments": {name: getattr(arguments, name) for name in sorted(deciding)} | {"dtype": str(dtype)},
    }


def task_identity(settings: TaskSettings) -> dict[str, Any]:
    """What all answers of a task share: the method with its resolved settings and its source, and
    the frames."""
    config = settings.config
    method = None
    if config is not None:
        cls: type[Any] = type(config)
        named = asdict(config) if is_dataclass(config) and not isinstance(config, type) else repr(config)
        method = {"class": f"{cls.__module__}.{cls.__qualname__}", "settings": named, "source": source_digest(cls)}
    frames = asdict(settings.video) | {"backend": settings.backend}
    frames.pop("timeout")  # a video that took too long has no answer
    return {"method": method, "video": frames}


def question_identity(request: Request, *, continuation: str | None = None) -> dict[str, Any]:
    """What is particular to one question: messages, with each video as its file now is, and how it
    is answered."""
    return {
        "messages": [[message["role"], _content(message["content"])] for message in request.messages],
        "generation": asdict(request.generation) if continuation is None else None,
        "continuation": continuation,
    }


def source_identity(source: Any) -> Any:
    """A video or an image: files by name, size and time of change, a folder or a list by its
    members, pixels by digest.

    Anything else is told by its ``repr``.
    """
    if isinstance(source, (str, Path)):
        return _path_identity(source)
    if isinstance(source, (list, tuple)):
        return [source_identity(member) for member in source]
    if isinstance(source, Image.Image):
        return [source.mode, source.size, hashlib.sha256(source.tobytes()).hexdigest()]
    if isinstance(source, (np.ndarray, torch.Tensor)):
        array = np.ascontiguousarray(source.numpy(force=True) if isinstance(source, torch.Tensor) else source)
        return [str(array.dtype), array.shape, hashlib.sha256(array.data).hexdigest()]
    return repr(source)


def checkpoint_identity(folder: Path) -> str:
    """16 hex digits for the files of a checkpoint: small ones by content, files of the hub by the
    hub's digest, other large ones by size and time of change."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")):
        file, stat = path.resolve(), path.stat()
        digest.update(f"\n{path.relative_to(folder).as_posix()} {stat.st_size} ".encode())
        if file.parent.name == "blobs":
            digest.update(file.name.encode())
        elif stat.st_size <= _READ_WHOLE:
            digest.update(file.read_bytes())
        else:
            digest.update(str(stat.st_mtime_ns).encode())
    return digest.hexdigest()[:16]


def source_digest(cls: type[Any]) -> str:
    """16 hex digits for the source of a method from outside of this package, with the modules of
    its author that it uses."""
    own = {base.__module__.partition(".")[0] for base in cls.__mro__}
    waiting, seen = [base.__module__ for base in cls.__mro__], set[str]()
    digest = hashlib.sha256()
    while waiting:
        name = waiting.pop()
        module = sys.modules.get(name)
        if module is None or name in seen or not _is_authors(module, own):
            continue
        seen.add(name)
        waiting += [
            value.__name__ if isinstance(value, ModuleType) else str(getattr(value, "__module__", ""))
            for value in vars(module).values()
        ]
    for name in sorted(seen):
        digest.update(f"\n{name}\n".encode() + Path(str(sys.modules[name].__file__)).read_bytes())
    return digest.hexdigest()[:16]


def _is_authors(module: ModuleType, own: set[str]) -> bool:
    """Whether a module belongs to a method's author: neither the standard library's nor ours nor
    just installed."""
    top, file = module.__name__.partition(".")[0], getattr(module, "__file__", None)
    if file is None or not Path(file).is_file() or top == sttm_lmms.__name__ or top in sys.stdlib_module_names:
        return False
    installed = {Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")}
    return top in own or not installed & set(Path(file).parents)


def _package_source() -> str:
    root, digest = Path(str(sttm_lmms.__file__)).parent, hashlib.sha256()
    for part in _DECIDING:
        for path in sorted((root / part).rglob("*.py")) or [root / part]:
            digest.update(f"\n{path.relative_to(root).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _content(content: str | Sequence[Mapping[str, Any]]) -> Any:
    if isinstance(content, str):
        return content
    return [[part["type"], _part(part)] for part in content]


def _part(part: Mapping[str, Any]) -> Any:
    value = part[part["type"]]
    return value if part["type"] == "text" else source_identity(value)


def _path_identity(source: str | Path) -> Any:
    path = Path(source)
    try:
        if path.is_dir():
            return [path.name, *(_path_identity(file) for file in sorted(path.iterdir()))]
        stat = path.stat()
    except OSError:  # a URL, or a file that is not there
        return str(source)
    return [path.name, stat.st_size, stat.st_mtime_ns]
