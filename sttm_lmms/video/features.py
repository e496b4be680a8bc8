"""Vision features on disk, one file a video, in the layout of the published ones.

``{root}/preprocess_data/{model}/F-{max_frames}_fps-{fps}/features/{vid}.safetensors``, with the key
and the metadata in the header of the file. Published features are a ``.pt`` there and a ``.pkl``
beside it in ``metadata``.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch.nn.functional import interpolate

from sttm_lmms.config import check_choice
from sttm_lmms.errors import FeatureError
from sttm_lmms.ids import safe_id
from sttm_lmms.types import VisionFeatures
from sttm_lmms.video.published import load_published
from sttm_lmms.video.settings import VideoSettings
from sttm_lmms.video.source_file import is_source

FORMS = {
    "full": "loses nothing: the vision features as they were computed",
    "bf16": "rounds float32 and float16 to bfloat16 (8 significant bits); loses nothing where the model runs in it",
    "pooled": "LLaVA families only, about a quarter of the size: frames are pooled to half the side before the "
    "projector instead of after it, so that answers are close to those of the full form, not equal; bfloat16 as well",
}
"""Name of each form in which features are stored and what it loses, for users to read."""

_EXTRACT = "delete it and run 'sttm-lmms extract' again"
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")
_PROCESSOR = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")
_SAMPLES, _BLOCK = 16, 4096


@dataclass(frozen=True)
class FeatureKey:
    """Everything that shapes stored features. Files made with another key are refused.

    Attributes:
        checkpoint: identity of the weights, such as :func:`fingerprint` gives.
        processor: identity of the image processor and its pixel limits.
        max_frames: most frames of a video.
        fps: frames sampled per second.
        dtype: what the vision tower computed in: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        form: one of :data:`FORMS`.
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


def feature_key(folder: Path, settings: VideoSettings, dtype: str, form: str = "full") -> FeatureKey:
    """The key of features that the checkpoint in a local folder makes with these settings.

    Raises:
        FileNotFoundError: the folder holds no weights.
        ValueError: an unknown dtype or form.
    """
    digest = hashlib.sha256(f"{settings.min_pixels} {settings.max_pixels}".encode())
    for path in (folder / name for name in _PROCESSOR):
        digest.update(path.read_bytes() if path.is_file() else b"\n")
    return FeatureKey(
        checkpoint=fingerprint(folder),
        processor=digest.hexdigest()[:16],
        max_frames=settings.max_frames,
        fps=float(settings.fps),
        dtype=dtype,
        form=form,
        sampling=settings.sampling,
    )


def fingerprint(folder: Path) -> str:
    """16 hex digits for the model in a local folder: its config.json, and of each weight file its
    name, its size and blocks from all over it, because fine-tuned weights differ in nothing else.

    Raises:
        FileNotFoundError: the folder holds no weights.
    """
    weights = sorted(path for pattern in _WEIGHTS for path in folder.glob(pattern))
    if not weights:
        raise FileNotFoundError(f"{folder}: no weights ({', '.join(_WEIGHTS)}) to tell this checkpoint by")
    config = folder / "config.json"
    digest = hashlib.sha256(config.read_bytes() if config.is_file() else b"")
    for path in weights:
        size = path.stat().st_size
        digest.update(f"\n{path.name} {size}\n".encode())
        with path.open("rb") as file:
            # Blocks from all over the file: reading gigabytes would take longer than encoding a
            # video.
            for sample in range(_SAMPLES + 1):
                file.seek(max(size - _BLOCK, 0) * sample // _SAMPLES)
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()[:16]


def stored_form(folder: Path) -> str | None:
    """The form of the first features in a store's folder; None if there are none of ours, or broken
    ones."""
    try:
        with safe_open(next(folder.glob("features/*.safetensors")), "pt") as file:
            return str(json.loads(file.metadata()["record"])["key"]["form"])
    except (StopIteration, OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None


class FeatureStore:
    """Features of one checkpoint, by video id. Processes may share it: files appear whole or not at
    all.

    Args:
        root: a data set's folder, the one that holds ``preprocess_data``.
        model_name: name of the checkpoint's folder in it.
        key: what the features must have been made with.
        frame_shape: shape behind the frames, such as (729, 1152); -1 takes any size. None checks
            only the number of dimensions.

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
        """Where the features of ``vid`` are stored. Raises :class:`FeatureError` for an id that
        leaves the folder."""
        return self.folder / "features" / f"{_checked(vid)}.safetensors"

    def has(self, vid: str, source: str | Path | None = None) -> bool:
        """Whether whole features of ``vid``, written by :meth:`save`, are there.

        Args:
            source: the video's file; features that were made from another one are not those of
                ``vid``.

        Raises:
            OtherKeyError: they were made with another key. They are somebody else's, not to be
                written over.
            FeatureError: the id leaves the folder.
        """
        path = self.path(vid)
        try:
            if not path.is_file():
                return False
            metadata = self._record(path)["metadata"]
            return source is None or is_source(metadata, source)
        except _BrokenError:
            return False  # made again

    def load(self, vid: str) -> VisionFeatures:
        """The features of ``vid`` on the CPU; in the dtype in which they lie there.

        Published files carry no key: their shape, frames and numbers are checked, not the
            checkpoint.

        Raises:
            FeatureError: missing, broken, unsafe, made with another key, or of a wrong shape, dtype
                or value.
        """
        path = self.path(vid)
        if path.is_file():
            record = self._record(path)
            with safe_open(path, "pt") as file:
                features = VisionFeatures(file.get_tensor("features"), record["kind"], record["metadata"])
        elif (published := path.with_suffix(".pt")).is_file():  # the paper's own files
            path = published
            features = VisionFeatures(*load_published(path, self.folder / "metadata" / f"{vid}.pkl"))
        else:
            raise FeatureError(f"{path}: no stored features; run 'sttm-lmms extract'")
        self._check(path, features)
        return features

    def save(self, vid: str, features: VisionFeatures) -> Path:
        """Store the features of ``vid`` in the form that the key names. The file appears whole or
        not at all.

        Raises:
            FeatureError: the id leaves the folder, or the features have a wrong shape, dtype or
                value.
        """
        path = self.path(vid)
        if str(features.tensor.dtype) != f"torch.{self.key.dtype}":
            raise FeatureError(f"{path}: {features.tensor.dtype} features for a store of {self.key.dtype}")
        tensor = to_form(features.tensor, self.key.form).detach().cpu().contiguous()
        self._check(path, VisionFeatures(tensor, features.kind, features.metadata))
        facts = {"key": asdict(self.key), "kind": features.kind, "metadata": features.metadata}
        try:
            record = json.dumps(facts, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise FeatureError(f"{path}: metadata that is not plain values ({error})") from error
        _write(path, save({"features": tensor}, {"record": record}))
        return path

    def remove_leftovers(self, older_than: float) -> None:
        """Delete the partial files of stopped processes that are older than so many seconds; young
        ones may belong to a process that is writing right now."""
        for partial in self.folder.glob("*/.*.tmp"):
            if partial.stat().st_mtime < time.time() - older_than:
                partial.unlink(missing_ok=True)

    def _record(self, path: Path) -> dict[str, Any]:
        """What the header of a whole file says, which was made with the key of this store."""
        try:
            with safe_open(path, "pt") as file:
                record = json.loads(file.metadata()["record"])
                key = FeatureKey(**record["key"])
                plain = record["kind"] in ("video", "image") and isinstance(record["metadata"], dict)
            if not plain:
                raise ValueError("it is not a record of features")
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise _BrokenError(f"{path}: broken or half-written ({error}); {_EXTRACT}") from error
        for field in fields(FeatureKey):
            stored, wanted = getattr(key, field.name), getattr(self.key, field.name)
            if stored != wanted:
                raise OtherKeyError(
                    f"{path}: made with {field.name}={stored!r}, but this run has {field.name}={wanted!r}; "
                    "use the same setting, or extract to another folder"
                )
        return record

    def _check(self, path: Path, features: VisionFeatures) -> None:
        reason = shape_error(features, self.key.form, self.key.max_frames, self.frame_shape)
        if reason:
            raise FeatureError(f"{path}: {reason}")


class OtherKeyError(FeatureError):
    """Stored features were made by another checkpoint or with other settings. The message names the
    difference."""


class _BrokenError(FeatureError):
    """A file that a stop left behind, or that somebody damaged."""


def form_shape(shape: Sequence[int], form: str) -> tuple[int, ...]:
    """The shape in which features of ``shape`` are stored. Raises ``ValueError`` where the form
    does not apply."""
    if form != "pooled":
        return tuple(shape)
    side = math.isqrt(shape[1])
    if len(shape) != 3 or side * side != shape[1]:
        raise ValueError(f"form='pooled' needs square frames [T, P, C], not {tuple(shape)}; take 'bf16'")
    return shape[0], -(-side // 2), -(-side // 2), shape[2]


def to_form(tensor: torch.Tensor, form: str) -> torch.Tensor:
    """Features ``[T, P, C]`` or ``[T, H, W, C]`` in the form to store; pooled ones are
    ``[T, h, w, C]``.

    Raises:
        ValueError: ``"pooled"`` for features that are not square frames ``[T, P, C]``.
    """
    shape = form_shape(tensor.shape, form)
    if form == "pooled":
        frames = tensor.float().unflatten(1, (math.isqrt(tensor.shape[1]), -1)).permute(0, 3, 1, 2)
        tensor = interpolate(frames, size=shape[1:3], mode="bilinear").permute(0, 2, 3, 1)
    return tensor if form == "full" else tensor.bfloat16()


def shape_error(
    features: VisionFeatures, form: str, max_frames: int, frame_shape: Sequence[int] | None = None
) -> str | None:
    """What is wrong with features as they lie on disk, or None.

    Args:
        features: in the given form.
        max_frames: most frames they may have.
        frame_shape: shape behind the frames in the full form; -1 takes any size; None checks the
            dimensions only.
    """
    tensor, count = features.tensor, features.metadata.get("num_frames")
    if tensor.dtype not in ((torch.float32, torch.bfloat16, torch.float16) if form == "full" else (torch.bfloat16,)):
        return f"holds {tensor.dtype}, not {'floating point numbers' if form == 'full' else 'torch.bfloat16'}"
    if tensor.ndim not in (3, 4) or not tensor.numel():
        return f"has the shape {tuple(tensor.shape)}, not [T, P, C] or [T, H, W, C]"
    if features.kind == "video" and len(tensor) > max_frames:
        return f"has {len(tensor)} frames, more than max_frames={max_frames}"
    found, wanted = tuple(tensor.shape[1:]), frame_shape and form_shape((1, *frame_shape), form)[1:]
    if wanted and (len(wanted) != len(found) or any(w not in (-1, f) for w, f in zip(wanted, found, strict=True))):
        return f"has frames of shape {found}, this model needs {wanted}"
    if count is not None and count != len(tensor):
        return f"has {len(tensor)} frames, its metadata says {count}"
    return None if torch.isfinite(tensor).all() else "holds NaN or infinite values"


def _checked(name: str, what: str = "video id") -> str:
    try:
        return safe_id(name, what)
    except ValueError as error:
        raise FeatureError(str(error)) from error


def _write(path: Path, data: bytes) -> None:
    """Write a file that is never seen half-written, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # before the rename: a name may reach the disk before its bytes
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
