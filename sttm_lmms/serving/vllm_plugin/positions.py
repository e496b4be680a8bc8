"""M-RoPE positions of a prompt whose videos are shorter than they were: those of the full prompt.

Then no position of a text token depends on which video tokens are kept, and everything else
follows:

1. Before any video is seen (:func:`prompt_positions`), text gets its final positions; the columns
   of images and videos are left for later.
2. The encoder's rows carry where they stand in their video (:class:`Run`, :func:`row_values`).
3. When rows reach the decoder, in whatever chunks, they get *base + carried position*
   (:func:`place_rows`), where the base follows from the text in front. Doing so twice changes
   nothing, so chunked prefill, preemption and prefix-cache hits need no further care.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sttm_lmms.families.qwen2_vl import mrope_positions

CARRIED = 5
"""Integers that travel with each row: t, y, x, its index in the run, and :attr:`Run.lead` + 1."""


@dataclass(frozen=True)
class Run:
    """The tokens that stand for one image or video in the full prompt.

    Attributes:
        length: tokens, text between frames (timestamps, marks) included.
        blocks: ``(start, (T, H, W))`` of each run of visual tokens in it.
        interval: steps of the first position axis from one frame to the next.
        lead: tokens of it in front of its first ``<|vision_start|>``; -1 where that mark stands in
            front of the run.
    """

    length: int
    blocks: tuple[tuple[int, tuple[int, int, int]], ...]
    interval: float = 1.0
    lead: int = -1

    @classmethod
    def of_grid(cls, grid: tuple[int, int, int], interval: float = 1.0) -> Run:
        """An image or video whose (T, H, W) tokens stand in one piece."""
        t, h, w = grid
        return cls(t * h * w, ((0, grid),), interval)

    def positions(self) -> torch.Tensor:
        """``[length, 3]`` int64: (t, y, x), counted from the run's own beginning."""
        return mrope_positions(self.length, self.blocks, [self.interval] * len(self.blocks))[:, 0].T

    def visual(self) -> torch.Tensor:
        """``[visual tokens]`` int64: places of the visual tokens in the run."""
        return torch.cat([torch.arange(start, start + t * h * w) for start, (t, h, w) in self.blocks])


def row_values(run: Run, kept: torch.Tensor) -> torch.Tensor:
    """What travels with the rows of a reduced run.

    Args:
        kept: ``[K]`` int64, ascending: the visual tokens whose places the kept ones take.

    Returns:
        ``[K + text tokens of the run, CARRIED]`` int64, in the order of the prompt.
    """
    visual = run.visual()
    stays = torch.ones(run.length, dtype=torch.bool)
    stays[visual] = False
    stays[visual[kept.cpu()]] = True
    positions = run.positions()[stays]
    index = torch.arange(len(positions))[:, None]
    return torch.cat((positions, index, torch.full_like(index, run.lead + 1)), dim=1)


@dataclass(frozen=True)
class Placeholder:
    """Where one image or video stands in the prompt that the decoder sees.

    Attributes:
        start: first column.
        length: columns.
        advance: how much further than the token in front of it the next text token is, less one.
    """

    start: int
    length: int
    advance: int


def prompt_positions(length: int, placeholders: Sequence[Placeholder]) -> tuple[torch.Tensor, int]:
    """Positions of a prompt of ``length`` columns, those of ``placeholders`` (ascending) left for
    later.

    Returns:
        ``[3, length]`` int64, and what has to be added to a column to get the position of a
        generated token.
    """
    positions = torch.empty(length, dtype=torch.long)
    done = position = 0
    for item in placeholders:
        text = item.start - done
        positions[done : item.start] = torch.arange(position, position + text)
        position += text
        positions[item.start : item.start + item.length] = position
        done, position = item.start + item.length, position + item.advance
    positions[done:] = torch.arange(position, position + length - done)
    return positions.expand(3, -1).contiguous(), next_delta(positions)


def next_delta(positions: torch.Tensor) -> int:
    """Position of the next generated token less its column; ``positions`` ``[..., length]``, the
    last token is text."""
    return int(positions[..., -1].max()) + 1 - positions.shape[-1]


def place_rows(
    input_ids: torch.Tensor,
    carried: Sequence[torch.Tensor],
    positions: torch.Tensor,
    computed: int,
    vision_start: int,
    pads: Sequence[int],
) -> torch.Tensor:
    """Write the positions of the encoder's rows into those of the prompt.

    Args:
        input_ids: ``[length]`` of the whole prompt.
        carried: ``[n, CARRIED]`` int64 of each image or video that has rows in this step, in the
            order of the prompt; the first one may begin in its middle.
        positions: ``[3, length]`` of the prompt so far.
        computed: columns that are in the KV cache already.
        vision_start: id of ``<|vision_start|>``.
        pads: ids that stand for image and video tokens.

    Returns:
        ``[3, length]`` int64; ``positions`` itself is not changed.
    """
    positions = positions.clone()
    if not any(len(values) for values in carried):
        return positions
    follows = torch.isin(input_ids[1:], torch.tensor(list(pads), device=input_ids.device))
    marks = ((input_ids[:-1] == vision_start) & follows).nonzero()[:, 0].tolist()
    column = computed
    for values in carried:
        if not len(values):
            continue
        index, lead = (int(value) for value in values[0, 3:])
        lead -= 1
        if index == 0:  # else it goes on where the last step ended
            column = next(mark for mark in marks if mark >= column + lead) - lead
        start = column - index
        base = positions[:, start - 1].max() + 1 if start else 0
        positions[:, column : column + len(values)] = (values[:, :3].T + base).to(positions)
        column += len(values)
    return positions
