"""Pickles and archives that would execute something. Each payload would leave a trace file."""

from __future__ import annotations

import collections
import io
import pickle
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sttm_lmms.errors import FeatureError
from sttm_lmms.video.features import FeatureKey, FeatureStore
from sttm_lmms.video.published import load_metadata

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


class Reduce:
    """An object that is a call when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def _stack_global(module: str, name: str) -> bytes:
    return _text(module) + _text(name) + b"\x93"


def _code(trace: Path) -> str:
    return f"open({str(trace)!r}, 'w').close()"


# Each builds bytes that leave the trace file when pickle.loads reads them.
PAYLOADS: dict[str, Callable[[Path], bytes]] = {
    "os.system": lambda t: pickle.dumps(Reduce(__import__("os").system, f"touch {t}")),
    "exec, protocol 0": lambda t: pickle.dumps(Reduce(exec, _code(t)), 0),
    "eval in a dict": lambda t: pickle.dumps({"vid": "clip", "num_frames": Reduce(eval, _code(t))}),
    "open": lambda t: pickle.dumps(Reduce(open, str(t), "w")),
    "stack global": lambda t: b"\x80\x04" + _stack_global("builtins", "exec") + _text(_code(t)) + b"\x85R.",
    "name from the memo": lambda t: (
        b"\x80\x04" + _text("exec") + b"\x940" + _text("builtins") + b"h\x00\x93" + _text(_code(t)) + b"\x85R."
    ),
    "INST": lambda t: b"(S" + repr(_code(t)).encode() + b"\nibuiltins\nexec\n.",
    "OBJ": lambda t: b"(cbuiltins\nexec\n" + _text(_code(t)) + b"o.",
    "after an allowed call": lambda t: (
        b"\x80\x02ccollections\nOrderedDict\n)R0cbuiltins\nexec\n" + _text(_code(t)) + b"\x85R."
    ),
    "inside of a tensor's bytes": lambda t: (
        b"\x80\x04" + _stack_global("torch.storage", "_load_from_bytes") + _binary(_legacy_storage(t)) + b"\x85R."
    ),
}


def _binary(data: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(data)) + data


def _legacy_storage(trace: Path) -> bytes:
    """What ``torch.load(..., weights_only=False)`` executes: torch's own loading code makes this
    call."""
    stream = io.BytesIO()
    torch.save(Reduce(exec, _code(trace)), stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


@pytest.mark.parametrize("name", PAYLOADS)
def test_payloads_are_refused_and_not_executed(tmp_path: Path, name: str) -> None:
    trace, path = tmp_path / "trace", tmp_path / "clip.pkl"
    path.write_bytes(PAYLOADS[name](trace))
    with pytest.raises(FeatureError, match=r"clip.pkl: "):
        load_metadata(path)
    assert not trace.exists()
    if name != "inside of a tensor's bytes":
        pickle.loads(path.read_bytes())
    else:
        torch.storage._load_from_bytes(_legacy_storage(trace))
    assert trace.exists(), "the payload does nothing, so this test proves nothing"


def metadata(folder: Path, data: bytes) -> dict[str, Any]:
    (folder / "clip.pkl").write_bytes(data)
    return load_metadata(folder / "clip.pkl")


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize(
    "value", [b"bytes", Path("x"), {1, 2}, np.float64(3), np.ones(3), collections.Counter("a"), range(3), len, dict]
)
def test_other_values_are_refused(tmp_path: Path, value: Any, protocol: int) -> None:
    for record in ({"x": value}, {"x": [1, value]}, value):
        with pytest.raises(FeatureError, match=r"clip.pkl: not the plain metadata of a video .*not executed"):
            metadata(tmp_path, pickle.dumps(record, protocol))


ENDLESS: list[Any] = [0]
ENDLESS.append(ENDLESS)
DOUBLING: Any = [0]
for _ in range(15):
    DOUBLING = [DOUBLING] * 10


@pytest.mark.parametrize(
    "value", [ENDLESS, DOUBLING, torch.zeros(1).expand(10**6)], ids=["endless", "doubling", "wide"]
)
def test_small_files_of_much_are_refused_quickly(tmp_path: Path, value: Any) -> None:
    with pytest.raises(FeatureError, match=r"clip.pkl: "):
        metadata(tmp_path, pickle.dumps({"x": value}))


@pytest.mark.parametrize("data", [b"", b"not a pickle", b"\x80\x02}q\x00(U\x03vid", pickle.dumps([1]), bytes(2 << 20)])
def test_what_is_no_metadata(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(FeatureError, match=r"clip.pkl: "):
        metadata(tmp_path, data)
    with pytest.raises(FeatureError, match=r"missing.pkl: .*No such file"):
        load_metadata(tmp_path / "missing.pkl")


@pytest.mark.parametrize("size", [((10**9,), (1,)), ((2, 2), (2, 5)), ((-1,), (1,)), (("2",), (1,))])
def test_a_tensor_larger_than_its_numbers_is_refused(tmp_path: Path, size: Any) -> None:
    storage = torch.storage.TypedStorage(wrap_storage=torch.zeros(4).untyped_storage(), dtype=torch.float32)

    class Tensor:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, (storage, 0, *size, False, collections.OrderedDict())

    with pytest.raises(FeatureError, match=r"clip.pkl: "):
        metadata(tmp_path, pickle.dumps({"x": Tensor()}))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_values_and_tensors_are_read(tmp_path: Path, protocol: int) -> None:
    plain = {"vid": "clip", "time": 3.5, "frames": 8, "sure": True, "nothing": None, "times": [0.0, 0.5]}
    tensors = {
        "grid": torch.tensor([[3, 4, 6]]),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "fps": [torch.tensor(2.5)],
    }
    loaded = metadata(tmp_path, pickle.dumps({**plain, **tensors}, protocol))
    assert loaded == {**plain, "grid": [3, 4, 6], "half": [1.0, 1.0], "fps": 2.5}


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=80))
def test_random_bytes_give_plain_values_or_a_feature_error(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            value = metadata(Path(folder), data)
        except FeatureError:
            return
    assert isinstance(value, dict)


def _archive(path: Path, program: bytes) -> None:
    """A file like those of ``torch.save``, with another program in it."""
    torch.save(torch.ones(2, 9, 4), path)
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for name, data in members.items():
            new.writestr(name, program if name.endswith("data.pkl") else data)


@pytest.mark.parametrize("name", ["os.system", "exec, protocol 0", "eval in a dict", "stack global"])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_pt_file_with_code_is_refused_and_not_executed(tmp_path: Path, name: str, legacy: bool) -> None:
    trace = tmp_path / "trace"
    store = FeatureStore(tmp_path, "model", FeatureKey("c", "p", 8, 1.0, "float32"))
    for folder in ("features", "metadata"):
        (store.folder / folder).mkdir(parents=True)
    (store.folder / "metadata" / "clip.pkl").write_bytes(pickle.dumps({"num_frames": 2}))
    path = store.folder / "features" / "clip.pt"
    if legacy:
        path.write_bytes(PAYLOADS[name](trace))
    else:
        _archive(path, PAYLOADS[name](trace))
    with pytest.raises(FeatureError, match=r"clip.pt: "):
        store.load("clip")
    assert not trace.exists()
