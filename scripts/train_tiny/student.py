"""Everything that is trained."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from transformers import Qwen2ForCausalLM

from sttm_lmms.benchmarks.mini.objects import GRID, OBJECTS

from .codes import HIDDEN, MAX_FRAMES, Codes, make_codes
from .decoder import FRONT, LAYERS, VOCABULARY, build_decoder
from .text import PREFIX, build_tokenizer
from .videos import Batch
from .vision import Vision

SEED = 20
ORDINALS = 5


class Heads(nn.Module):
    """Linear readers of hidden states for the dense supervision of the decoder; dropped after
    training."""

    def __init__(self) -> None:
        super().__init__()
        self.ordinal = nn.Linear(HIDDEN, ORDINALS)
        self.present = nn.Linear(HIDDEN, 2)
        self.time = nn.Linear(HIDDEN, MAX_FRAMES)
        self.count = nn.Linear(HIDDEN, ORDINALS)
        self.later = nn.Linear(HIDDEN, 2)
        self.right = nn.Linear(HIDDEN, 2)


class Student(nn.Module):
    """Everything that is trained: vision side, decoder, and the heads that are dropped in the
    end."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(SEED)
        self.codes: Codes = make_codes()
        self.tokenizer = build_tokenizer()
        ids = self.tokenizer.convert_tokens_to_ids(list(OBJECTS))
        self.vision = Vision()
        self.decoder: Qwen2ForCausalLM = build_decoder(self.codes, ids)
        self.heads = Heads()
        object_of = torch.full((VOCABULARY,), -1)
        object_of[ids] = torch.arange(len(OBJECTS))
        self.object_of = object_of
        self.period: int = self.tokenizer.convert_tokens_to_ids(".")
        self.prefix = torch.tensor(self.tokenizer(PREFIX)["input_ids"])

    def layers(self, numbers: range) -> Iterator[nn.Parameter]:
        for number in numbers:
            yield from self.decoder.model.layers[number].parameters()

    def core(self) -> Iterator[nn.Parameter]:
        """All of the decoder but its front layers, and the heads."""
        yield from self.layers(range(FRONT, LAYERS))
        yield from self.decoder.model.embed_tokens.parameters()
        yield from self.decoder.model.norm.parameters()
        yield from self.decoder.lm_head.parameters()
        yield from self.heads.parameters()

    def context(self, visual: torch.Tensor) -> torch.Tensor:
        """Prefix and visual tokens ``[B, P + N, C]``."""
        start = self.decoder.model.embed_tokens(self.prefix)
        return torch.cat((start[None].expand(len(visual), -1, -1), visual), 1)

    def time_code(self, batch: Batch) -> torch.Tensor:
        """What the front layers have to add to the visual tokens ``[B, N, C]``."""
        # With one axis of positions, time is the place in the full sequence.
        return self.codes.time_code(batch.step + batch.cell / GRID**2 - 0.5)
