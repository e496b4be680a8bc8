"""Linear readers of hidden states for the dense supervision of the decoder; dropped after training."""

from __future__ import annotations

from torch import nn

from .codes import HIDDEN, MAX_FRAMES

ORDINALS = 5


class Heads(nn.Module):
    """Linear readers of hidden states."""

    def __init__(self) -> None:
        super().__init__()
        self.ordinal = nn.Linear(HIDDEN, ORDINALS)
        self.present = nn.Linear(HIDDEN, 2)
        self.time = nn.Linear(HIDDEN, MAX_FRAMES)
        self.count = nn.Linear(HIDDEN, ORDINALS)
        self.later = nn.Linear(HIDDEN, 2)
        self.right = nn.Linear(HIDDEN, 2)
