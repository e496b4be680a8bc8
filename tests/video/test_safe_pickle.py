"""Pickles and archives that would execute something. Each payload would leave a trace file."""

from __future__ import annotations

import collections
import io
import pickle
import struct
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
from sttm_lmms.video.safe_pickle import load_plain_pickle, loads_plain

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
    """What ``torch.load(..., weights_only=False)`` executes: torch's own loading code makes this call."""
    stream = io.BytesIO()
    torch.save(Reduce(exec, _code(trace)), stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


@pytest.mark.parametrize("name", PAYLOADS)
def test_payloads_are_refused_and_not_executed(tmp_path: Path, name: str) -> None:
    trace, path = tmp_path / "trace", tmp_path / "clip.pkl"
    path.write_bytes(PAYLOADS[name](trace))
    with pytest.raises(FeatureError, match=r"clip.pkl: "):
        load_plain_pickle(path)
    assert not trace.exists()
    if name != "inside of a tensor's bytes":
        pickle.loads(path.read_bytes())
    else:
        torch.storage._load_from_bytes(_legacy_storage(trace))
    assert trace.exists(), "the payload does nothing, so this test proves nothing"


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "value",
    [
        b"bytes",
        Path("x"),
        {1, 2},
        np.float64(3),
        np.ones(3),
        collections.Counter("aab"),
        complex(1, 2),
        range(3),
        ValueError("x"),
        len,
        dict,
        torch.nn.Linear(2, 2),
        torch.Size([1, 2]),
        torch.float32,
        torch.device("cpu"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_objects_are_refused(protocol: int, value: Any) -> None:
    with pytest.raises(FeatureError):
        loads_plain(pickle.dumps({"vid": value}, protocol))


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (b"\x80\x02ccollections\nOrderedDict\n.", "it holds a function"),
        (b"\x80\x02ccollections\nOrderedDict\n}U\x01aK\x01sb.", "BUILD"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}\x86b.", "BUILD"),
        (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "NEWOBJ"),
        (b"\x80\x02U\x01kQ.", "BINPERSID"),
        (b"Pk\n.", "PERSID"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x00))tR.", "without numbers"),
        (b"\x80\x02Nr\xff\xff\xff\x7f.", "more values than it has"),
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.", "broken"),
        (b"\x80\x02N.garbage", "after its end"),
        (b"\x80\x02]q\x00h\x00a.", "nested without end"),
        (b"\x80\x02" + b"]" * 100 + b"a" * 99 + b".", "nested without end"),
        (b"\x80\x02]q\x00(h\x00h\x00e.", "nested without end"),
        (b"", "broken"),
        (b"not a pickle", "broken|refused|call|object"),
        (b"\x80\x02}q\x00(U\x03vid", "broken"),
    ],
)
def test_odd_programs_are_refused(program: bytes, reason: str) -> None:
    with pytest.raises(FeatureError, match=reason):
        loads_plain(program)


def test_a_list_that_doubles_is_refused_quickly() -> None:
    value: Any = [0]
    for _ in range(15):
        value = [value] * 10
    with pytest.raises(FeatureError, match="nested without end"):
        loads_plain(pickle.dumps(value))


@pytest.mark.parametrize("size", [((10**9,), (1,)), ((2, 2), (2, 5)), ((-1,), (1,)), ((2,), (1, 1)), (("2",), (1,))])
def test_a_tensor_larger_than_its_numbers_is_refused(size: Any) -> None:
    storage = torch.zeros(4).untyped_storage()

    class Tensor:
        def __reduce__(self) -> Any:
            typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)
            return torch._utils._rebuild_tensor_v2, (typed, 0, *size, False, collections.OrderedDict())

    with pytest.raises(FeatureError, match=r"too large|without a shape"):
        loads_plain(pickle.dumps(Tensor()))


def test_missing_and_huge_files(tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match=r"clip.pkl: cannot be read"):
        load_plain_pickle(tmp_path / "clip.pkl")
    with (tmp_path / "clip.pkl").open("wb") as file:
        file.truncate(17 << 20)
    with pytest.raises(FeatureError, match="more than 16 MiB"):
        load_plain_pickle(tmp_path / "clip.pkl")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_tensors_are_read(protocol: int) -> None:
    grid = torch.arange(12).reshape(3, 4).T
    value = {"video_grid_thw": grid, "half": torch.ones(2, dtype=torch.bfloat16), "scalar": torch.tensor(2.5)}
    loaded = loads_plain(pickle.dumps(value, protocol))
    for name, tensor in value.items():
        assert torch.equal(loaded[name], tensor)
        assert loaded[name].dtype == tensor.dtype


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@settings(max_examples=100, deadline=None)
@given(plain, st.sampled_from(list(PROTOCOLS)))
def test_plain_values_are_read(value: Any, protocol: int) -> None:
    assert loads_plain(pickle.dumps(value, protocol)) == value


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80))
def test_random_bytes_give_plain_values_or_a_feature_error(data: bytes) -> None:
    try:
        value = loads_plain(data)
    except FeatureError:
        return
    assert isinstance(value, (type(None), bool, int, float, str, list, tuple, dict))


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
