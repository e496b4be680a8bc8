"""Everything that is trained, and where its weights may come from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import Qwen2ForCausalLM

from sttm_lmms.benchmarks.mini.objects import OBJECTS

from .codes import HIDDEN, MAX_FRAMES, Codes
from .decoder import FRONT, LAYERS, VOCABULARY, Positions, build_decoder
from .shapes import Shape
from .stream import Batch
from .text import build_tokenizer

SEED = 20
ORDINALS = 5


class Heads(nn.Module):
    """Linear readers of hidden states for the dense supervision of the decoder; dropped after training."""

    def __init__(self) -> None:
        super().__init__()
        self.ordinal = nn.Linear(HIDDEN, ORDINALS)
        self.present = nn.Linear(HIDDEN, 2)
        self.time = nn.Linear(HIDDEN, MAX_FRAMES)
        self.count = nn.Linear(HIDDEN, ORDINALS)
        self.later = nn.Linear(HIDDEN, 2)
        self.right = nn.Linear(HIDDEN, 2)


class Student(nn.Module):
    """Everything that is trained: vision side, decoder, and the heads that are dropped in the end."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        torch.manual_seed(SEED)
        self.shape = shape
        self.codes: Codes = shape.codes()
        self.tokenizer = build_tokenizer(shape.special)
        ids = self.tokenizer.convert_tokens_to_ids(list(OBJECTS))
        self.vision = shape.eye.build()
        self.decoder: Qwen2ForCausalLM = build_decoder(self.codes, ids)
        self.heads = Heads()
        object_of = torch.full((VOCABULARY,), -1)
        object_of[ids] = torch.arange(len(OBJECTS))
        self.object_of = object_of
        self.period: int = self.tokenizer.convert_tokens_to_ids(".")
        prefix = torch.tensor(self.tokenizer(shape.opening)["input_ids"])
        self.prefix = prefix

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

    def positions(self, batch: Batch) -> Positions | None:
        return self.shape.positions(batch, len(self.prefix))

    def time_code(self, batch: Batch) -> torch.Tensor:
        """What the front layers have to add to the visual tokens ``[B, N, C]``."""
        return self.codes.time_code(self.shape.time(batch.step, batch.cell / batch.grid**2))


def warm_start(student: Student, decoder: Qwen2ForCausalLM, tokenizer: Any, first: int = FRONT) -> None:
    """Take over the layers from ``first`` on, and the words by what they say; the heads and layers before stay fresh.

    Args:
        student: to be started.
        decoder: trained by the same stages.
        tokenizer: of ``decoder``.
    """
    theirs = tokenizer.get_vocab()
    # The new tokens around the video stand where the other model has a line break.
    stand_ins = {"<|vision_start|>": "Ċ", "<|vision_end|>": "Ċ"}
    pairs = [
        (number, theirs[stand_ins.get(word, word)])
        for word, number in student.tokenizer.get_vocab().items()
        if stand_ins.get(word, word) in theirs
    ]
    ours, old = torch.tensor(pairs).T
    with torch.no_grad():
        for name in ("model.embed_tokens", "lm_head"):
            student.decoder.get_submodule(name).weight[ours] = decoder.get_submodule(name).weight[old]
    student.decoder.model.norm.load_state_dict(decoder.model.norm.state_dict())
    for number in range(first, LAYERS):
        student.decoder.model.layers[number].load_state_dict(decoder.model.layers[number].state_dict())
