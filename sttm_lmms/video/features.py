"""Visual features on disk: written by us as safetensors + JSON, read from the published ``.pt`` + ``.pkl`` as well.

The layout is the published one::

    {root}/preprocess_data/{model}/F-{max_frames}_fps-{fps}/features/{vid}.safetensors   metadata/{vid}.json
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from sttm_lmms.config import check_choice
from sttm_lmms.errors import FeatureError
from sttm_lmms.ids import safe_id
from sttm_lmms.types import VisionFeatures
from sttm_lmms.video.feature_forms import FORMS, shape_error, to_form
from sttm_lmms.video.published_features import load_published
from sttm_lmms.video.source_file import is_source

_EXTRACT = "delete it and run 'sttm-lmms extract' again"


@dataclass(frozen=True)
class FeatureKey:
    """Everything that shapes stored features. Files made with another key are refused.

    Attributes:
        checkpoint: identity of the weights, such as :func:`~sttm_lmms.video.fingerprint.fingerprint` gives.
        processor: identity of the image processor and its pixel limits.
        max_frames: most frames of a video.
        fps: frames sampled per second.
        dtype: what the vision tower computed in: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        form: one of :data:`~sttm_lmms.video.feature_forms.FORMS`.
        sampling: one of :data:`~sttm_lmms.video.settings.SAMPLINGS`.
    """

    checkpoint: str
    processor: str
    max_frames: int
    fps: float
    dtype: str
    form: str = "full"
    sampling: str = "model"

    def __post_init__(self) -> None:
        check_choice("dtype", self.dtype, ("float32", "bfloat16", "float16"))
        check_choice("form", self.form, tuple(FORMS))


class FeatureStore:
    """Features of one checkpoint, by video id. Processes may share it: files appear whole or not at all.

    Args:
        root: a data set's folder, the one that holds ``preprocess_data``.
        model_name: name of the checkpoint's folder in it.
        key: what the features must have been made with.
        frame_shape: shape behind the frames, such as (729, 1152); -1 takes any size. None checks only the number of
            dimensions.

    Raises:
        FeatureError: ``model_name`` is not a plain name.
    """

    def __init__(
        self, root: str | Path, model_name: str, key: FeatureKey, *, frame_shape: Sequence[int] | None = None
    ) -> None:
        settings = f"F-{key.max_frames}_fps-{key.fps:g}"
        self.key, self.frame_shape = key, frame_shape
        self.folder = Path(root) / "preprocess_data" / _checked(model_name, "model name") / settings

    def path(self, vid: str) -> Path:
        """Where the features of ``vid`` are stored. Raises :class:`FeatureError` for an id that leaves the folder."""
        return self.folder / "features" / f"{_checked(vid)}.safetensors"

    def metadata_path(self, vid: str) -> Path:
        """Where the key and the metadata of ``vid`` are stored."""
        return self.folder / "metadata" / f"{_checked(vid)}.json"

    def has(self, vid: str, path: str | Path | None = None) -> bool:
        """Whether whole features of ``vid``, written by :meth:`save`, are there.

        Args:
            path: the video's file; features that are known to be of another one do not count.

        Raises:
            OtherKeyError: they were made with another key. They are somebody else's, not to be written over.
            FeatureError: the id leaves the folder.
        """
        if not self.path(vid).is_file():
            return False
        try:
            record = self._read_record(vid)
            self._check_key(vid, record)
            with self._open(vid):
                return path is None or is_source(record["metadata"], path)
        except _Broken:
            return False

    def load(self, vid: str) -> VisionFeatures:
        """The features of ``vid`` on the CPU; in the dtype in which they lie there.

        Published files carry no key: their shape, frames and numbers are checked, not the checkpoint.

        Raises:
            FeatureError: missing, broken, unsafe, made with another key, or of a wrong shape, dtype or value.
        """
        path = self.path(vid)
        if path.is_file():
            record = self._read_record(vid)
            self._check_key(vid, record)
            with self._open(vid) as file:
                features = VisionFeatures(file.get_tensor("features"), record["kind"], record["metadata"])
        else:
            path = path.with_suffix(".pt")
            if not path.is_file():
                raise FeatureError(f"{path.with_suffix('.safetensors')}: no stored features; run 'sttm-lmms extract'")
            features = load_published(path, self.folder / "metadata" / f"{vid}.pkl")
        self._check(path, features)
        return features

    def save(self, vid: str, features: VisionFeatures) -> Path:
        """Store the features of ``vid`` in the form that the key names. The file appears whole or not at all.

        Raises:
            FeatureError: the id leaves the folder, or the features have a wrong shape, dtype or value.
        """
        path = self.path(vid)
        if str(features.tensor.dtype) != f"torch.{self.key.dtype}":
            raise FeatureError(f"{path}: {features.tensor.dtype} features for a store of {self.key.dtype}")
        tensor = to_form(features.tensor, self.key.form).detach().cpu().contiguous()
        self._check(path, VisionFeatures(tensor, features.kind, features.metadata))
        try:
            facts = {"key": asdict(self.key), "kind": features.kind, "metadata": features.metadata}
            record = json.dumps(facts, indent=1, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise FeatureError(f"{path}: metadata that is not plain values ({error})") from error
        # The features come second and name the record: a stop in between leaves nothing that looks whole.
        _write(self.metadata_path(vid), record)
        _write(path, save({"features": tensor}, {"record": _digest(record)}))
        return path

    def remove_leftovers(self, older_than: float) -> int:
        """Delete the partial files that stopped processes left, if they are older than so many seconds; their number.

        Young ones may belong to a process that is writing right now.
        """
        limit, removed = time.time() - older_than, 0
        for partial in self.folder.glob("*/.*.tmp"):
            if partial.stat().st_mtime < limit:
                partial.unlink(missing_ok=True)
                removed += 1
        return removed

    def _read_record(self, vid: str) -> dict[str, Any]:
        path = self.metadata_path(vid)
        try:
            data = path.read_bytes()
            record = json.loads(data)
            key = FeatureKey(**record["key"])
            kind, metadata = record["kind"], record["metadata"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _Broken(f"{path}: broken or missing; {_EXTRACT}") from error
        if kind not in ("video", "image") or not isinstance(metadata, dict):
            raise _Broken(f"{path}: not a record of features; {_EXTRACT}")
        with self._open(vid) as file:
            if (file.metadata() or {}).get("record") != _digest(data):
                raise _Broken(f"{self.path(vid)}: does not belong to {path}; {_EXTRACT}")
        return {"key": key, "kind": kind, "metadata": metadata}

    def _open(self, vid: str) -> Any:
        try:
            file = safe_open(self.path(vid), "pt")
            if list(file.keys()) != ["features"]:
                raise _Broken(f"{self.path(vid)}: holds {list(file.keys())} instead of features; {_EXTRACT}")
            return file
        except (SafetensorError, OSError) as error:
            raise _Broken(f"{self.path(vid)}: broken or half-written ({error}); {_EXTRACT}") from error

    def _check_key(self, vid: str, record: dict[str, Any]) -> None:
        for field in fields(FeatureKey):
            stored, wanted = getattr(record["key"], field.name), getattr(self.key, field.name)
            if stored != wanted:
                raise OtherKeyError(
                    f"{self.path(vid)}: made with {field.name}={stored!r}, but this run has {field.name}={wanted!r}; "
                    f"use the same setting, or extract to another folder"
                )

    def _check(self, path: Path, features: VisionFeatures) -> None:
        reason = shape_error(features, self.key.form, self.key.max_frames, self.frame_shape)
        if reason:
            raise FeatureError(f"{path}: {reason}")


class OtherKeyError(FeatureError):
    """Stored features were made by another checkpoint or with other settings. The message names the difference."""


class _Broken(FeatureError):
    """A file that a stop left behind, or that somebody damaged."""


def _checked(name: str, what: str = "video id") -> str:
    try:
        return safe_id(name, what)
    except ValueError as error:
        raise FeatureError(str(error)) from error


def _digest(record: bytes) -> str:
    return hashlib.sha256(record).hexdigest()


def _write(path: Path, data: bytes) -> None:
    """Write a file that is never seen half-written, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
