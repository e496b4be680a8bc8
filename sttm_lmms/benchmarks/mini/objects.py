"""What the needles are: small saturated shapes, each with a name that a question can use."""

from __future__ import annotations

import torch

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 35, 35),
    "green": (30, 185, 50),
    "blue": (40, 70, 235),
    "yellow": (245, 225, 30),
    "magenta": (225, 45, 205),
    "cyan": (35, 215, 225),
}
SHAPES: tuple[str, ...] = ("disc", "ring", "cross", "triangle", "flag")
OBJECTS: tuple[str, ...] = tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)
GRID = 7
"""Cells a side that a frame has in the first embedded models; needle sizes are given in cells."""


def object_colour(index: int) -> torch.Tensor:
    """RGB colour of ``OBJECTS[index]``, float32 ``[3]`` in [0, 1]."""
    return torch.tensor(list(COLOURS.values())[index % len(COLOURS)], dtype=torch.float32) / 255


def shape_mask(shape: str, u: torch.Tensor, v: torch.Tensor, edge: torch.Tensor | float) -> torch.Tensor:
    """Soft coverage in [0, 1] of a shape that fills the square ``-1 <= u, v <= 1`` (v points down).

    ``edge`` is the width of the soft border in the same units. ``u``, ``v`` and ``edge`` broadcast.
    """
    radius = torch.sqrt(u * u + v * v)
    side = torch.maximum(u.abs(), v.abs())
    if shape == "disc":
        inside = 1 - radius
    elif shape == "ring":
        inside = torch.minimum(1 - radius, radius - 0.55)
    elif shape == "cross":
        inside = torch.minimum(1 - side, 0.34 - torch.minimum(u.abs(), v.abs()))
    elif shape == "triangle":
        inside = torch.minimum(1 - v, (1 + v) / 2 - u.abs())
    elif shape == "flag":
        inside = torch.minimum(1 - side, v.abs() - 0.34)
    else:
        raise ValueError(f"shape {shape!r} is not one of {', '.join(SHAPES)}")
    return (inside / edge + 0.5).clamp(0, 1)


def paint(frames: torch.Tensor, index: int, x: float, y: float, size: float, grid: int = GRID) -> torch.Tensor:
    """Draw ``OBJECTS[index]`` over every frame.

    Args:
        frames: ``[n, 3, H, W]`` float in [0, 1].
        x, y: centre, as a share of the width and the height.
        size: extent in cells of a ``grid x grid`` division of the frame, so that a needle covers
            the same cells whatever the frame's size and aspect ratio.
        grid: cells a side.

    Returns:
        New frames of the same shape.
    """
    height, width = frames.shape[-2:]
    half = size / grid / 2
    u = ((torch.arange(width) + 0.5) / width - x)[None, :] / half
    v = ((torch.arange(height) + 0.5) / height - y)[:, None] / half
    mask = shape_mask(SHAPES[index // len(COLOURS)], u, v, edge=2.0 / (half * min(height, width)))
    return frames + mask * (object_colour(index)[:, None, None] - frames)
