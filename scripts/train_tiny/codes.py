"""Fixed orthogonal directions of the model's hidden space: what the vision side writes and the decoder reads.

Objects, background, colour and time each get a direction of their own. The vision tower is taught to write object,
background and colour; the first two decoder layers are taught to add the time.
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
SPREAD = 0.15
WAVES = 12


@dataclass(frozen=True)
class Codes:
    """Orthonormal rows: ``objects [K, C]``, ``background [C]``, ``colour [3, C]``, ``time [8, C]``."""

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
        """What a cell without a needle should look like, ``[..., C]`` from its mean colour ``[..., 3]`` in [0, 1]."""
        vector = 0.6 * self.background + COLOUR_GAIN * (rgb - 0.45) @ self.colour
        return OBJECT_NORM * torch.nn.functional.normalize(vector, dim=-1)


@dataclass(frozen=True)
class SpreadCodes(Codes):
    """Codes in which surfaces of different colours are as good as orthogonal, as in the published models' features.

    The similarity of two backgrounds falls with the distance of their colours like a Gaussian of width ``SPREAD``.

    Attributes:
        waves: orthonormal rows ``[2 n, C]``; rates: ``[n, 3]``, of the waves over red, green and blue.
    """

    waves: torch.Tensor
    rates: torch.Tensor

    def background_target(self, rgb: torch.Tensor) -> torch.Tensor:
        phase = rgb @ self.rates.T
        wave = torch.cat((phase.cos(), phase.sin()), -1) / len(self.rates) ** 0.5
        return OBJECT_NORM * torch.nn.functional.normalize(0.35 * self.background + wave @ self.waves, dim=-1)


def make_codes() -> Codes:
    """The codes, the same in every stage and run."""
    generator = torch.Generator().manual_seed(7)
    total = len(OBJECTS) + 1 + 3 + 8
    basis = torch.linalg.qr(torch.randn(HIDDEN, total, generator=generator)).Q.T.contiguous()
    k = len(OBJECTS)
    return Codes(basis[:k], basis[k], basis[k + 1 : k + 4], basis[k + 4 :])


def make_spread_codes() -> SpreadCodes:
    """The same objects, background and time, with waves in directions that were free."""
    codes = make_codes()
    known = torch.cat((codes.objects, codes.background[None], codes.colour, codes.time))
    generator = torch.Generator().manual_seed(8)
    fresh = torch.randn(2 * WAVES, HIDDEN, generator=generator)
    fresh = fresh - fresh @ known.T @ known
    waves = torch.linalg.qr(fresh.T).Q.T.contiguous()
    rates = torch.randn(WAVES, 3, generator=generator) / SPREAD
    return SpreadCodes(codes.objects, codes.background, codes.colour, codes.time, waves, rates)
