"""Fixed orthogonal directions of the model's hidden space: what the vision side writes and the
decoder reads.

Objects, background, colour and time each get a direction of their own. The vision tower is taught
to write object, background and colour; the first two decoder layers are taught to add the time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from sttm_lmms.benchmarks.mini.objects import OBJECTS

HIDDEN = 128
OBJECT_NORM = 4.0
TIME_NORM = 1.0
MAX_FRAMES = 16
COLOUR_GAIN = 1.4


@dataclass(frozen=True)
class Codes:
    """Orthonormal rows: ``objects [K, C]``, ``background [C]``, ``colour [3, C]``,
    ``time [8, C]``."""

    objects: torch.Tensor
    background: torch.Tensor
    colour: torch.Tensor
    time: torch.Tensor

    def time_code(self, frames: torch.Tensor) -> torch.Tensor:
        """Smooth code ``[..., C]`` of (fractional) frame numbers, of norm ``TIME_NORM``."""
        rates = torch.tensor([0.5, 1.0, 2.0, 4.0])
        phase = frames.float()[..., None] * (math.pi / MAX_FRAMES) * rates
        waves = torch.cat((phase.cos(), phase.sin()), -1)
        return TIME_NORM * 0.5 * waves @ self.time

    def background_target(self, rgb: torch.Tensor) -> torch.Tensor:
        """What a cell without a needle should look like, ``[..., C]`` from its mean colour
        ``[..., 3]`` in [0, 1]."""
        vector = 0.6 * self.background + COLOUR_GAIN * (rgb - 0.45) @ self.colour
        return OBJECT_NORM * torch.nn.functional.normalize(vector, dim=-1)


def make_codes() -> Codes:
    """The codes, the same in every stage and run."""
    generator = torch.Generator().manual_seed(7)
    total = len(OBJECTS) + 1 + 3 + 8
    basis = torch.linalg.qr(torch.randn(HIDDEN, total, generator=generator)).Q.T.contiguous()
    k = len(OBJECTS)
    return Codes(basis[:k], basis[k], basis[k + 1 : k + 4], basis[k + 4 :])
