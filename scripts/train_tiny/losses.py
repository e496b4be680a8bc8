"""Dense supervision of the decoder: heads that ask early layers for the steps of the answer.
Dropped afterwards."""

from __future__ import annotations

from collections import Counter

import torch
import torch.nn.functional as F

from .codes import HIDDEN
from .decoder import FRONT, LAYERS, Trace
from .student import ORDINALS, Student
from .videos import Batch


def text_targets(batch: Batch, object_of: torch.Tensor, period: int) -> dict[str, tuple[torch.Tensor, ...]]:
    """Per head: rows, text positions and classes. ``object_of[id]`` is the object a token names, or
    -1."""
    found: dict[str, list[tuple[int, int, int]]] = {k: [] for k in ("present", "time", "count", "later", "right")}
    starts = [sum(batch.lengths[:i]) for i in range(len(batch.lengths))]
    ids = batch.ids
    named = object_of[ids]
    for row, video in enumerate(batch.drawn):
        seen = Counter(event.index for event in video.events)
        first = {event.index: event.second for event in reversed(video.events)}
        for start, length, question in zip(starts, batch.lengths, video.questions, strict=True):
            words = [start + i for i in (named[row, start : start + length] >= 0).nonzero()[:, 0].tolist()]
            stops = [start + i for i in (ids[row, start : start + length] == period).nonzero()[:, 0].tolist()]
            for option, stop in enumerate(stops):
                found["right"].append((row, stop, int(option == question.answer)))
            for word in words:
                index = int(named[row, word])
                if question.kind == "cnt":
                    found["count"].append((row, word, seen[index] - 1))
                else:
                    found["present"].append((row, word, int(index in seen)))
                if question.kind == "ord":
                    found["time"].append((row, word, first[index]))
            if question.kind == "ord":
                times = [first[int(named[row, word])] for word in words]
                for i, word in enumerate(words):
                    if i % 4:
                        found["later"].append((row, word, int(times[i] > times[i - 1])))
    return {k: tuple(torch.tensor(v).T) for k, v in found.items() if v}


def ordinal_targets(needle: torch.Tensor) -> torch.Tensor:
    """How often the object of each needle token was seen before, ``[B, N]``; -1 for background."""
    same = (needle[:, :, None] == needle[:, None]) & (needle >= 0)[:, :, None]
    before = same.tril(-1).sum(-1)
    return torch.where(needle >= 0, before, -1).clamp(max=ORDINALS - 1)


DEPTH = {"present": 1, "time": 1, "count": 2, "later": 2, "right": 3}
"""Core layer after which each text head reads."""
WEIGHT = {"present": 0.3, "time": 1.0, "count": 1.0, "later": 0.7, "right": 0.7}


def losses(student: Student, trace: Trace, batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
    """Total loss and a report: accuracy of each head and of the answers by kind.

    ``batch`` has the visual tokens that the core layers see.
    """
    heads, size = student.heads, len(student.prefix)
    report: dict[str, float] = {}
    total = torch.zeros(())
    for name, (rows, places, classes) in text_targets(batch, student.object_of, student.period).items():
        state = trace.text[FRONT + DEPTH[name]][rows, places]
        logits = getattr(heads, name)(F.rms_norm(state, (HIDDEN,)))
        total = total + WEIGHT[name] * F.cross_entropy(logits, classes)
        report[name] = accuracy(logits, classes)
    kinds = [question.kind for question in batch.drawn[0].questions]
    if "cnt" in kinds:
        ordinal = ordinal_targets(batch.needle)
        rows, places = (ordinal >= 0).nonzero().T
        logits = heads.ordinal(F.rms_norm(trace.context[FRONT + 1][rows, size + places], (HIDDEN,)))
        total = total + F.cross_entropy(logits, ordinal[rows, places])
        report["ordinal"] = accuracy(logits, ordinal[rows, places])
        looking = counting_attention(trace.attention[FRONT + 1], batch, student.object_of, size)
        total = total + 0.5 * looking
        report["looking"] = looking.item()
    ends = torch.tensor(batch.lengths).cumsum(0) - 1
    final = student.decoder.model.norm(trace.text[LAYERS - 1])
    letters = batch.ids[:, ends]
    logits = student.decoder.lm_head(final[:, ends - 1])
    total = total + F.cross_entropy(logits.flatten(0, 1), letters.flatten())
    end_of_turn = torch.full_like(letters, student.tokenizer.eos_token_id)
    closing = student.decoder.lm_head(final[:, ends])
    total = total + 0.1 * F.cross_entropy(closing.flatten(0, 1), end_of_turn.flatten())
    hit = (logits.argmax(-1) == letters).float().mean(0)
    for kind in dict.fromkeys(kinds):
        report[f"answer_{kind}"] = hit[[k == kind for k in kinds]].mean().item()
    return total, report


def counting_attention(shares: torch.Tensor, batch: Batch, object_of: torch.Tensor, prefix: int) -> torch.Tensor:
    """How far (KL) the first head of an object's name in a counting question is from looking where
    it can count.

    That is evenly at every needle of its object and at the first token of the sequence: what the
    first token gets, 1/(n + 1), is then the count, whatever else has been dropped.
    """
    counted = torch.tensor([question.kind == "cnt" for question in batch.drawn[0].questions])
    asked = torch.repeat_interleave(counted, torch.tensor(batch.lengths))
    rows, words = ((object_of[batch.ids] >= 0) & asked).nonzero().T
    same = batch.needle[rows] == object_of[batch.ids[rows, words]][:, None]
    wanted = torch.zeros(len(rows), shares.shape[-1])
    wanted[:, 0] = 1
    wanted[:, prefix : prefix + batch.needle.shape[1]] = same.float()
    wanted = wanted / wanted.sum(-1, keepdim=True)
    given = shares[rows, 0, words].clamp_min(1e-9)
    return F.kl_div(given.log(), wanted, reduction="batchmean")


def accuracy(logits: torch.Tensor, classes: torch.Tensor) -> float:
    return (logits.argmax(-1) == classes).float().mean().item()
