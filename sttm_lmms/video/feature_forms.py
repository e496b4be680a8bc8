"""The forms in which features are stored, what each loses, and what features must look like."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn.functional import interpolate

from sttm_lmms.types import VisionFeatures

FORMS = {
    "full": "loses nothing: the vision features as they were computed",
    "bf16": "rounds float32 and float16 to bfloat16 (8 significant bits); loses nothing where the model runs in it",
    "pooled": "LLaVA families only, about a quarter of the size: frames are pooled to half the side before the "
    "projector instead of after it, so that answers are close to those of the full form, not equal; bfloat16 as well",
}
"""Name of each form and what it loses, for users to read."""

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def form_dtype(dtype: torch.dtype, form: str) -> torch.dtype:
    """The dtype in which features computed in ``dtype`` are stored."""
    return dtype if form == "full" else torch.bfloat16


def form_shape(shape: Sequence[int], form: str) -> tuple[int, ...]:
    """The shape in which features of ``shape`` are stored. Raises ``ValueError`` where the form does not apply."""
    if form != "pooled":
        return tuple(shape)
    side = math.isqrt(shape[1])
    if len(shape) != 3 or side * side != shape[1]:
        raise ValueError(f"form='pooled' needs square frames [T, P, C], not {tuple(shape)}; take 'bf16'")
    half = -(-side // 2)
    return shape[0], half, half, shape[2]


def to_form(tensor: torch.Tensor, form: str) -> torch.Tensor:
    """Features ``[T, P, C]`` or ``[T, H, W, C]`` in the form to store; pooled ones are ``[T, h, w, C]``.

    Raises:
        ValueError: ``"pooled"`` for features that are not square frames ``[T, P, C]``.
    """
    shape = form_shape(tensor.shape, form)
    if form == "pooled":
        side = math.isqrt(tensor.shape[1])
        frames = tensor.float().reshape(len(tensor), side, side, -1).permute(0, 3, 1, 2)
        tensor = interpolate(frames, size=shape[1:3], mode="bilinear").permute(0, 2, 3, 1)
    return tensor.to(form_dtype(tensor.dtype, form))


def shape_error(
    features: VisionFeatures, form: str, max_frames: int, frame_shape: Sequence[int] | None = None
) -> str | None:
    """What is wrong with features, or None.

    Args:
        features: as they lie on disk.
        form: the form they should have.
        max_frames: most frames they may have.
        frame_shape: shape behind the frames in the full form; -1 takes any size; None checks the dimensions only.
    """
    tensor = features.tensor
    if tensor.dtype not in _FLOATS or (form != "full" and tensor.dtype != torch.bfloat16):
        return f"holds {tensor.dtype}, not {'floating point numbers' if form == 'full' else 'torch.bfloat16'}"
    if tensor.ndim not in (3, 4) or not tensor.numel():
        return f"has the shape {tuple(tensor.shape)}, not [T, P, C] or [T, H, W, C]"
    if features.kind == "video" and len(tensor) > max_frames:
        return f"has {len(tensor)} frames, more than max_frames={max_frames}"
    if frame_shape is not None:
        expected = form_shape((1, *frame_shape), form)[1:]
        if len(expected) != tensor.ndim - 1 or any(
            e not in (-1, n) for e, n in zip(expected, tensor.shape[1:], strict=True)
        ):
            return f"has frames of shape {tuple(tensor.shape[1:])}, this model needs {expected}"
    frames = features.metadata.get("num_frames")
    if frames is not None and frames != len(tensor):
        return f"has {len(tensor)} frames, its metadata says {frames}"
    if not torch.isfinite(tensor).all():
        return "holds NaN or infinite values"
    return None
