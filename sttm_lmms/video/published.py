"""Features that were published with the paper, a tensor in ``.pt`` and metadata in ``.pkl``, read
as plain values."""

from __future__ import annotations

import io
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, Literal

import torch

from sttm_lmms.errors import FeatureError

_MAX_METADATA = 1 << 20
_MAX_VALUES = 100_000
_SPARE_BYTES = 1 << 20

# What makes an object of a class, gives it a state, or asks the reader for something.
_REFUSED = {"INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD", "PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4"}


def _tensor(storage: torch.TypedStorage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Any:
    """Torch's own function makes the storage larger where it is too small."""
    return torch.tensor([], dtype=storage.dtype).set_(storage._untyped_storage).as_strided(size, stride, offset)


# All that a pickled tensor calls; torch's own ``_load_from_bytes`` would run code.
_CALLS = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch.storage", "_load_from_bytes"): lambda data: torch.load(io.BytesIO(data), weights_only=True),
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): lambda text, _: text.encode("latin1"),
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _CALLS:
            raise pickle.UnpicklingError(f"it would call {module}.{name}")
        return _CALLS[module, name]


def load_published(features: Path, metadata: Path) -> tuple[torch.Tensor, Literal["video"], dict[str, Any]]:
    """Tensor, kind and metadata of one video.

    Raises:
        FeatureError: a file is missing, broken, holds code, or holds something else than a tensor
            and a dict.
    """
    record = load_metadata(metadata)
    return _load_tensor(features), "video", record


def load_metadata(path: Path) -> dict[str, Any]:
    """None, booleans, numbers, texts, lists and tensors by name: tensors as lists; ``[[t, h, w]]``
    as ``[t, h, w]``.

    Raises:
        FeatureError: the file is missing, too large, broken, or would make or call anything else.
    """
    try:
        data = path.read_bytes()
        if len(data) > _MAX_METADATA:
            raise pickle.UnpicklingError(f"more than {_MAX_METADATA >> 20} MiB")
        for opcode, _, _ in pickletools.genops(data):
            if opcode.name in _REFUSED:
                raise pickle.UnpicklingError(f"it would make an object ({opcode.name})")
        record = _PlainUnpickler(io.BytesIO(data)).load()
        if not isinstance(record, dict):
            raise pickle.UnpicklingError(f"it holds a {type(record).__name__} instead of a dict")
        nodes = count()
        return {str(name): _plain(value, nodes) for name, value in record.items()}
    except Exception as error:  # the standard library promises no particular error for a broken pickle
        raise FeatureError(f"{path}: not the plain metadata of a video ({error}); it was not executed") from error


def _plain(value: Any, nodes: Iterator[int]) -> Any:
    """``value`` without tensors; ``nodes`` counts, because a few bytes can describe a list without
    end."""
    if next(nodes) > _MAX_VALUES:
        raise pickle.UnpicklingError(f"it holds more than {_MAX_VALUES} values")
    if isinstance(value, torch.Tensor) and value.numel() <= _MAX_VALUES:
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        items = [_plain(item, nodes) for item in value]
        return items[0] if len(items) == 1 else items
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise pickle.UnpicklingError(f"it holds a {type(value).__name__} of more than plain values")


def _load_tensor(path: Path) -> torch.Tensor:
    try:
        with zipfile.ZipFile(path) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise FeatureError(f"{path}: a compressed archive, not a file that torch.save wrote")
        value = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise FeatureError(f"{path}: holds more than a tensor, or is broken ({reason}); it was not executed") from error
    except (zipfile.BadZipFile, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise FeatureError(f"{path}: not a tensor that torch.save wrote ({error})") from error
    if type(value) is not torch.Tensor or value.layout is not torch.strided or value.device.type != "cpu":
        raise FeatureError(f"{path}: holds a {type(value).__name__} instead of a tensor")
    # A stride of 0 lets a small file claim a tensor that fills the memory.
    if value.numel() * value.element_size() > path.stat().st_size + _SPARE_BYTES:
        raise FeatureError(f"{path}: claims a tensor of {tuple(value.shape)}, which is larger than the file")
    return value.contiguous()
