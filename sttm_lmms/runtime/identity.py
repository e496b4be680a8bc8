"""What tells one visual from another: the bytes of what is in memory; path, time and size of a
file.

An object's ``id`` is given to another one when it dies, and a buffer is filled again, so neither
says what is shown.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Hashable
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import torch
from PIL import Image, ImageFile


def content_key(source: Any) -> Hashable:
    """A key that is equal for visuals with equal content.

    Args:
        source: what a message may hold: a file or folder (``str`` or ``Path``), a PIL image, an
            array or a tensor of any dtype, strides and device, or a list of these.

    Returns:
        Something hashable; where the content cannot be told, a key that equals no other, so that
        nothing is reused.
    """
    if isinstance(source, (str, os.PathLike)):
        return _file_key(os.fspath(source))
    if isinstance(source, (list, tuple)):
        return tuple(content_key(item) for item in source)
    try:
        if isinstance(source, Image.Image):
            return _image_key(source)
        return _array_key(source)
    except (TypeError, ValueError, RuntimeError, OSError):
        return object()  # reading it will say what is wrong with it


def is_array(source: Any) -> bool:
    """Whether ``source`` is frames that their owner may write over at any time: an array, a tensor,
    a list of them."""
    if isinstance(source, (list, tuple)):
        return bool(source) and all(is_array(item) for item in source)
    return isinstance(source, (np.ndarray, torch.Tensor))


def _file_key(path: str | bytes) -> Hashable:
    name = os.fsdecode(path)
    if name.startswith("file://"):
        name = url2pathname(urlsplit(name).path)
    try:
        version = _version(os.stat(name))
    except OSError:
        return name  # not a file of this machine, or missing
    if not os.path.isdir(name):
        return os.path.abspath(name), *version
    with os.scandir(name) as entries:
        inside = sorted((entry.name, *_version(entry.stat(follow_symlinks=entry.is_file()))) for entry in entries)
    return os.path.abspath(name), *version, *inside


def _version(status: os.stat_result) -> tuple[int, int, int]:
    # The time of the last change of any kind sees a file that was overwritten and given back its
    # old date.
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size


def _image_key(image: Image.Image) -> Hashable:
    form = (image.mode, image.size)
    if isinstance(image, ImageFile.ImageFile) and image.tile and image.fp is not None:
        # Not decoded yet: looking at its pixels would keep all images of a run in memory at the
        # same time.
        try:
            status = os.fstat(image.fp.fileno())
            return (*form, image.tell(), status.st_dev, status.st_ino, *_version(status))
        except (AttributeError, OSError):  # a file object without a file
            pass
    palette = bytes(image.palette.palette) if image.mode in ("P", "PA") and image.palette is not None else b""
    return (*form, repr(image.info.get("transparency")), palette, hashlib.sha256(image.tobytes()).digest())


def _array_key(source: Any) -> Hashable:
    if isinstance(source, torch.Tensor):
        kind, shape = str(source.dtype), tuple(source.shape)
        # As bytes, because NumPy has no bfloat16. Frame by frame: strided and device memory is
        # copied for it.
        parts = (
            part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            for part in (source if source.ndim else source[None])
        )
    else:
        array = np.asarray(source)
        if array.dtype.hasobject:
            raise TypeError(f"{type(source).__name__}: an array of objects has no bytes of its own")
        kind, shape = array.dtype.str, array.shape
        parts = (
            np.ascontiguousarray(part).reshape(-1).view(np.uint8) for part in (array if array.ndim else array[None])
        )
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return kind, shape, digest.digest()
