"""Reading pickles from elsewhere without executing anything.

A pickle is a program. This reader looks at the whole program first and refuses it unless it only builds None,
booleans, numbers, texts, lists, tuples, dicts and torch tensors; then it runs it with stand-ins for the
functions that a pickled tensor calls.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from pathlib import Path
from typing import Any

import torch

from sttm_lmms.errors import FeatureError

_MAX_BYTES = 16 << 20
_MAX_NODES = 100_000
_MAX_DEPTH = 16
_WAY_OUT = "take files from a source you trust and save them as plain values"

# Everything that makes an object of a class, gives it a state, or asks the reader for something.
_REFUSED = {"INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD", "PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4"}


def load_plain_pickle(path: str | Path) -> Any:
    """The plain values and tensors in a pickle file.

    Raises:
        FeatureError: the file is missing, too large, broken, or would build or call anything else. It has not done
            so then.
    """
    try:
        if Path(path).stat().st_size > _MAX_BYTES:
            raise FeatureError(f"{path}: more than {_MAX_BYTES >> 20} MiB of metadata; {_WAY_OUT}")
        data = Path(path).read_bytes()
    except OSError as error:
        raise FeatureError(f"{path}: cannot be read ({error.strerror})") from error
    return loads_plain(data, path)


def loads_plain(data: bytes, name: object = "pickle") -> Any:
    """As :func:`load_plain_pickle`, from bytes; ``name`` is what errors call them."""
    try:
        _check_program(data)
        value = _Unpickler(io.BytesIO(data)).load()
        _check_plain(value)
        return value
    except _Refused as error:
        raise FeatureError(f"{name}: {error}; {_WAY_OUT}") from error
    except Exception as error:  # the standard library promises no particular error for a broken pickle
        raise FeatureError(f"{name}: a broken pickle ({type(error).__name__}: {error})") from error


class _Refused(Exception):
    """The pickle would do more than build plain values."""


def _check_program(data: bytes) -> None:
    end = 0
    for count, (opcode, argument, position) in enumerate(pickletools.genops(data)):
        end = (position or 0) + 1
        if opcode.name in _REFUSED:
            raise _Refused(f"it would make an object ({opcode.name})")
        if opcode.name == "GLOBAL":
            _stand_in(*str(argument).split(" ", 1))
        if "PUT" in opcode.name and int(argument or 0) > count:
            raise _Refused("it claims far more values than it has")
    if end != len(data):
        raise _Refused("there is something after its end")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _stand_in(module, name)


def _stand_in(module: str, name: str) -> Any:
    try:
        return _STAND_INS[module, name]
    except KeyError:
        raise _Refused(f"it would call {module}.{name}") from None


def _storage(data: bytes) -> torch.TypedStorage:
    """What ``torch.storage._load_from_bytes`` returns, which reads these bytes with everything allowed."""
    storage = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    if not isinstance(storage, torch.TypedStorage):
        raise _Refused(f"it holds a {type(storage).__name__} where a tensor's numbers should be")
    return storage


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> torch.Tensor:
    if not isinstance(storage, torch.TypedStorage):
        raise _Refused("it holds a tensor without numbers")
    layout = [offset, *size, *stride]
    if not all(isinstance(n, int) and n >= 0 for n in layout) or len(size) != len(stride):
        raise _Refused("it holds a tensor without a shape")
    numbers, memory = torch.tensor([], dtype=storage.dtype), storage._untyped_storage
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) > _MAX_NODES or (last + 1) * numbers.itemsize > memory.nbytes():
        raise _Refused(f"it holds a tensor that is too large: {tuple(size)}")
    numbers.set_(memory, offset, size, stride)
    return numbers.clone(memory_format=torch.contiguous_format)


def _bytes(text: str, encoding: str) -> bytes:
    """How old pickle protocols write bytes."""
    return text.encode("latin1")


def _no_hooks() -> dict[str, Any]:
    """The empty ordered dictionary of hooks in every pickled tensor."""
    return {}


_STAND_INS = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("collections", "OrderedDict"): _no_hooks,
    ("_codecs", "encode"): _bytes,
}


def _check_plain(value: Any) -> None:
    """A stand-in that was pickled without being called is not a value; neither is a structure without end."""
    stack, nodes = [(value, 0)], 0
    while stack:
        item, depth = stack.pop()
        nodes += 1
        if nodes > _MAX_NODES or depth > _MAX_DEPTH:
            raise _Refused("it is nested without end")
        if isinstance(item, dict):
            stack += [(child, depth + 1) for pair in item.items() for child in pair]
        elif isinstance(item, (list, tuple)):
            stack += [(child, depth + 1) for child in item]
        elif not isinstance(item, (type(None), bool, int, float, str, torch.Tensor)):
            raise _Refused(f"it holds a {type(item).__name__}")
