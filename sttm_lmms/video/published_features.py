"""Reading the features that were published with the paper: a tensor in ``.pt``, metadata in ``.pkl``."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from sttm_lmms.errors import FeatureError
from sttm_lmms.types import VisionFeatures
from sttm_lmms.video.safe_pickle import load_plain_pickle

_SPARE_BYTES = 1 << 20


def load_published(features: Path, metadata: Path) -> VisionFeatures:
    """Features and metadata of one video, read without executing anything.

    Raises:
        FeatureError: a file is missing, broken, holds code, or holds something else than a tensor and a dict.
    """
    record = load_plain_pickle(metadata)
    if not isinstance(record, dict):
        raise FeatureError(f"{metadata}: holds a {type(record).__name__} instead of a dict")
    return VisionFeatures(_load_tensor(features), "video", {str(k): _plain(v) for k, v in record.items()})


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


def _plain(value: Any) -> Any:
    """Tensors as lists of numbers; one video's ``[[t, h, w]]`` as ``[t, h, w]``, and ``[fps]`` as ``fps``."""
    if isinstance(value, torch.Tensor):
        value = value.tolist()
    while isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    return value
