"""Telling checkpoints apart without reading all of their weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

from sttm_lmms.video.features import FeatureKey
from sttm_lmms.video.settings import VideoSettings

_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")
_PROCESSOR = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")
_SAMPLES, _BLOCK = 16, 4096


def fingerprint(folder: str | Path) -> str:
    """16 hex digits for the model in a local folder: its config.json, and of each weight file its name, its size and
    blocks from all over it.

    Raises:
        FileNotFoundError: the folder holds no weights.
    """
    folder, digest = Path(folder), hashlib.sha256()
    weights = sorted(path for pattern in _WEIGHTS for path in folder.glob(pattern))
    if not weights:
        raise FileNotFoundError(f"{folder}: no weights ({', '.join(_WEIGHTS)}) to tell this checkpoint by")
    config = folder / "config.json"
    digest.update(config.read_bytes() if config.is_file() else b"")
    for path in weights:
        size = path.stat().st_size
        digest.update(f"\n{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for sample in range(_SAMPLES + 1):
                file.seek(max(size - _BLOCK, 0) * sample // _SAMPLES)
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()[:16]


def feature_key(folder: str | Path, settings: VideoSettings, dtype: str, form: str = "full") -> FeatureKey:
    """The key of features that the checkpoint in a local folder makes with these settings.

    Raises:
        FileNotFoundError: the folder holds no weights.
        ValueError: an unknown dtype or form.
    """
    digest = hashlib.sha256(f"{settings.min_pixels} {settings.max_pixels}".encode())
    for name in _PROCESSOR:
        path = Path(folder) / name
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
