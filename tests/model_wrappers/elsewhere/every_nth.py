"""A reduction method outside of the package: keep every n-th token."""

from dataclasses import dataclass

import torch

from sttm_lmms.config import check_integer
from sttm_lmms.methods.base import LayerMethod
from sttm_lmms.types import Kept


@dataclass(frozen=True)
class EveryNth(LayerMethod):
    """``n``: how far apart the survivors are."""

    n: int = 2

    def __post_init__(self):
        super().__post_init__()
        check_integer("n", self.n, 1)

    def reduce(self, tokens, layer, probe, state):
        return Kept.select(tokens, torch.arange(0, len(tokens), self.n, device=tokens.features.device))
