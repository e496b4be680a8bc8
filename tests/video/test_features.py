from __future__ import annotations

import dataclasses
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from sttm_lmms import STTMConfig
from sttm_lmms.errors import FeatureError
from sttm_lmms.ids import safe_id
from sttm_lmms.types import VisionFeatures
from sttm_lmms.video import VideoSettings
from sttm_lmms.video.features import FeatureKey, FeatureStore, OtherKeyError, feature_key, fingerprint, to_form

KEY = FeatureKey("weights-a", "processor-a", max_frames=8, fps=1.0, dtype="float32")
METADATA = {"vid": "clip", "video_time": 3.5, "frame_time": "0.00s,1.00s", "num_frames": 2}


def features(frames: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32) -> VisionFeatures:
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randn(frames, 9, 4, generator=generator).to(dtype)
    return VisionFeatures(tensor, "video", {**METADATA, "num_frames": frames})


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path, "model", KEY, frame_shape=(9, 4))


def other(store: FeatureStore, tmp_path: Path, **changes: Any) -> FeatureStore:
    """A store that looks at the same files with another key."""
    changed = FeatureStore(tmp_path, "model", dataclasses.replace(KEY, **changes))
    changed.folder = store.folder
    return changed


def publish(store: FeatureStore, vid: str, tensor: Any, metadata: Any) -> None:
    """Write the published kind of files."""
    for folder in ("features", "metadata"):
        (store.folder / folder).mkdir(parents=True, exist_ok=True)
    torch.save(tensor, store.folder / "features" / f"{vid}.pt")
    (store.folder / "metadata" / f"{vid}.pkl").write_bytes(pickle.dumps(metadata))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_round_trip(tmp_path: Path, dtype: str) -> None:
    store = FeatureStore(tmp_path, "model", dataclasses.replace(KEY, dtype=dtype))
    stored = features(dtype=getattr(torch, dtype))
    assert not store.has("clip")
    path = store.save("clip", stored)
    assert path == tmp_path / "preprocess_data/model/F-8_fps-1/features/clip.safetensors"
    assert store.has("clip")
    loaded = store.load("clip")
    assert torch.equal(loaded.tensor, stored.tensor)
    assert loaded.tensor.dtype == stored.tensor.dtype
    assert (loaded.kind, loaded.metadata) == (stored.kind, stored.metadata)
    assert sorted(p.name for p in store.folder.rglob("*.*")) == ["clip.safetensors"]


def test_published_features_are_read(store: FeatureStore) -> None:
    publish(store, "clip", features().tensor.half(), METADATA)
    loaded = store.load("clip")
    assert torch.equal(loaded.tensor, features().tensor.half())
    assert loaded.metadata == METADATA
    assert not store.has("clip"), "published files are not ours"


def test_published_qwen2_vl_features_are_read(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, "qwen", KEY, frame_shape=(-1, -1, 4))
    grid = {"video_sample_fps": [2.0], "video_grid_thw": torch.tensor([[3, 4, 6]])}
    publish(store, "clip", torch.ones(3, 2, 3, 4), grid)
    assert store.load("clip").metadata == {"video_sample_fps": 2.0, "video_grid_thw": [3, 4, 6]}


def test_our_own_features_come_before_published_ones(store: FeatureStore) -> None:
    publish(store, "clip", features(seed=1).tensor, METADATA)
    store.save("clip", features(seed=2))
    assert torch.equal(store.load("clip").tensor, features(seed=2).tensor)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("checkpoint", "weights-b"),
        ("processor", "p"),
        ("max_frames", 9),
        ("fps", 2.0),
        ("dtype", "float16"),
        ("form", "bf16"),
    ],
)
def test_another_key_is_refused_by_name(store: FeatureStore, tmp_path: Path, field: str, value: Any) -> None:
    store.save("clip", features())
    changed = other(store, tmp_path, **{field: value})
    for attempt in (changed.has, changed.load):
        with pytest.raises(
            OtherKeyError, match=f"clip.safetensors: made with {field}=.*this run has {field}={value!r}"
        ):
            attempt("clip")


def test_missing(store: FeatureStore) -> None:
    with pytest.raises(FeatureError, match=r"clip.safetensors: no stored features; run 'sttm-lmms extract'"):
        store.load("clip")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.double(), "torch.float64"),
        (lambda t: t[..., :3], r"shape \(9, 3\), this model needs \(9, 4\)"),
        (lambda t: t[0], "not \\[T, P, C\\]|needs"),
        (lambda t: t[:0], "shape"),
        (lambda t: t.repeat(5, 1, 1), "more than max_frames=8"),
        (lambda t: t[:1], "has 1 frames, its metadata says 2"),
        (lambda t: t.masked_fill(t > 1, float("nan")), "NaN or infinite"),
        (lambda t: t.masked_fill(t > 1, float("inf")), "NaN or infinite"),
        (lambda t: t.to(torch.int64), "torch.int64"),
    ],
)
def test_wrong_features_are_neither_written_nor_read(store: FeatureStore, change: Any, reason: str) -> None:
    wrong = change(features().tensor)
    with pytest.raises(FeatureError, match=reason):
        store.save("clip", VisionFeatures(wrong, "video", METADATA))
    assert not store.has("clip")
    publish(store, "clip", wrong, METADATA)
    with pytest.raises(FeatureError, match=f"clip.pt: .*({reason})"):
        store.load("clip")


def test_metadata_that_is_not_plain_is_refused(store: FeatureStore) -> None:
    with pytest.raises(FeatureError, match="metadata that is not plain values"):
        store.save("clip", VisionFeatures(features().tensor, "video", {"config": STTMConfig(budget=0.5)}))


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.99])
def test_a_half_written_file_is_refused_and_written_again(store: FeatureStore, share: float) -> None:
    path = store.save("clip", features())
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert not store.has("clip")
    with pytest.raises(FeatureError, match=r"clip.safetensors: broken or half-written .*delete it and run"):
        store.load("clip")
    store.save("clip", features())
    assert store.has("clip")


@pytest.mark.parametrize("record", [None, "", "{", "[]", '{"key": {}}', '{"key": {"checkpoint": 1}}'])
def test_a_broken_record_is_refused(store: FeatureStore, record: str | None) -> None:
    path = store.save("clip", features())
    save_file({"features": features().tensor}, path, None if record is None else {"record": record})
    assert not store.has("clip")
    with pytest.raises(FeatureError, match=r"clip.safetensors: broken .*delete it and run"):
        store.load("clip")


def test_leftovers_are_not_features_and_go_when_they_are_old(store: FeatureStore) -> None:
    path = store.save("clip", features())
    partial = path.with_name(".other.safetensors.0123.tmp")
    partial.write_bytes(path.read_bytes())
    assert not store.has("other")
    store.remove_leftovers(older_than=60)
    assert partial.exists()
    store.remove_leftovers(older_than=-1)
    assert not partial.exists()
    assert store.has("clip")


def test_a_failed_write_leaves_nothing(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("sttm_lmms.video.features.os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        store.save("clip", features())
    assert not [p for p in store.folder.rglob("*") if p.is_file()]


def test_forms(tmp_path: Path) -> None:
    stored = features()
    bf16 = FeatureStore(tmp_path / "a", "model", dataclasses.replace(KEY, form="bf16"), frame_shape=(9, 4))
    bf16.save("clip", stored)
    assert torch.equal(bf16.load("clip").tensor, stored.tensor.bfloat16())
    pooled = FeatureStore(tmp_path / "b", "model", dataclasses.replace(KEY, form="pooled"), frame_shape=(9, 4))
    pooled.save("clip", stored)
    loaded = pooled.load("clip").tensor
    assert loaded.shape == (2, 2, 2, 4)
    assert loaded.dtype == torch.bfloat16
    grid = stored.tensor.reshape(2, 3, 3, 4)
    corner = 0.75 * 0.75 * grid[:, 0, 0] + 0.1875 * (grid[:, 0, 1] + grid[:, 1, 0]) + 0.0625 * grid[:, 1, 1]
    torch.testing.assert_close(loaded[:, 0, 0].float(), corner, atol=0.02, rtol=0.02)
    with pytest.raises(ValueError, match="form='pooled' needs square frames"):
        to_form(torch.ones(2, 3, 3, 4), "pooled")


def test_fingerprints_tell_checkpoints_apart(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(100_000))
    (tmp_path / "config.json").write_text("{}")
    settings = VideoSettings(max_frames=8, fps=1)
    first, key = fingerprint(tmp_path), feature_key(tmp_path, settings, "float32")
    assert fingerprint(tmp_path) == first == key.checkpoint
    weights.write_bytes(bytes(50_000) + b"x" * 50_000)
    assert fingerprint(tmp_path) != first
    weights.write_bytes(bytes(100_000))
    (tmp_path / "config.json").write_text('{"a": 1}')
    assert fingerprint(tmp_path) != first
    (tmp_path / "preprocessor_config.json").write_text("{}")
    assert feature_key(tmp_path, settings, "float32").processor != key.processor
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="no weights"):
        fingerprint(tmp_path)


ESCAPING = [
    "",
    ".",
    "..",
    "../x",
    "a/b",
    "/etc/x",
    "a\\b",
    "..\\x",
    "C:\\x",
    "C:x",
    "a\0b",
    "a\nb",
    ".hidden",
    "x" * 300,
]


@pytest.mark.parametrize("vid", [*ESCAPING, None, 3, b"clip"])
def test_ids_that_leave_the_folder_are_refused(store: FeatureStore, vid: Any) -> None:
    with pytest.raises(ValueError, match="video id"):
        safe_id(vid)
    for attempt in (store.path, store.has, store.load, lambda v: store.save(v, features())):
        with pytest.raises(FeatureError, match="video id"):
            attempt(vid)
    assert not store.folder.exists()
    with pytest.raises(FeatureError, match="model name"):
        FeatureStore(store.folder, vid, KEY)


@given(st.text(min_size=1, max_size=30))
def test_an_id_stays_in_its_folder_or_is_refused(vid: str) -> None:
    folder = Path("data").absolute()
    try:
        name = safe_id(vid)
    except ValueError:
        return
    assert (folder / f"{name}.pt").resolve().parent == folder.resolve()


@pytest.mark.parametrize(
    "vid", ["86CxyhFV9MI_0", "-Ab3_x", "fFjv93ACGo8", "0a1b-2c.mp4", "movie101_32", "a..b", "影片"]
)
def test_ordinary_ids_pass(vid: str) -> None:
    assert safe_id(vid) == vid


def test_an_archive_that_unpacks_to_more_is_refused(store: FeatureStore) -> None:
    publish(store, "clip", features().tensor, METADATA)
    path = store.folder / "features" / "clip.pt"
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in members.items():
            new.writestr(name, data)
    with pytest.raises(FeatureError, match="compressed archive"):
        store.load("clip")


def test_a_small_file_cannot_claim_a_huge_tensor(store: FeatureStore) -> None:
    publish(store, "clip", torch.zeros(1).expand(8, 729_000, 1152), METADATA)
    with pytest.raises(FeatureError, match="larger than the file"):
        store.load("clip")


@pytest.mark.parametrize(
    "value", [{"features": torch.ones(2, 9, 4)}, [torch.ones(2, 9, 4)], torch.ones(2, 9, 4).to_sparse()]
)
def test_something_else_than_a_tensor_is_refused(store: FeatureStore, value: Any) -> None:
    publish(store, "clip", value, METADATA)
    with pytest.raises(FeatureError, match=r"clip.pt: holds a \w+ instead of a tensor"):
        store.load("clip")
