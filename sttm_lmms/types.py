"""Values that every part of the package shares: where a video sits in a sequence, its features, its
tokens.

The bottom of the package: imports torch alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

Message = Mapping[str, Any]
"""A chat message: ``{"role": "user", "content": [part, ...]}`` with parts
``{"type": "text", "text": ...}``, ``{"type": "video"}`` and ``{"type": "image"}``. The n-th visual
part belongs to the n-th ``VisionFeatures``."""


@dataclass(frozen=True)
class VideoSpan:
    """Where one video's ``T*H*W`` tokens stand in a sequence, in row-major (t, y, x) order.

    Attributes:
        start: index of the first visual token in its row of ``input_ids`` / ``inputs_embeds``.
        grid: (T, H, W).
        row: batch row.
        pieces: ``(start, length)`` of each run of tokens, ascending, where other tokens
            (timestamps, marks of frames) stand between them; None for one run. A survivor stays in
            the piece of its representative, and a piece that empties leaves its surroundings as
            they are.

    Raises:
        ValueError: the pieces overlap, do not begin at ``start``, or do not hold T*H*W tokens.
    """

    start: int
    grid: tuple[int, int, int]
    row: int = 0
    pieces: tuple[tuple[int, int], ...] | None = None

    def __post_init__(self) -> None:
        if self.pieces is None:
            return
        ends = [start + length for start, length in self.pieces]
        if (
            not self.pieces
            or self.pieces[0][0] != self.start
            or any(start < end for (start, _), end in zip(self.pieces[1:], ends, strict=False))
            or sum(length for _, length in self.pieces) != self.length
        ):
            raise ValueError(
                f"pieces={self.pieces} must begin at start={self.start}, ascend without overlap and hold "
                f"{self.length} tokens, the {self.grid} grid"
            )

    @property
    def length(self) -> int:
        """Visual tokens."""
        t, h, w = self.grid
        return t * h * w

    @property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """``(start, length)`` of each run of tokens."""
        return self.pieces or ((self.start, self.length),)

    @property
    def end(self) -> int:
        """Index after the last visual token."""
        start, length = self.runs[-1]
        return start + length

    def places(self) -> list[int]:
        """Index of each of its tokens in the row."""
        return [place for start, length in self.runs for place in range(start, start + length)]


@dataclass(frozen=True)
class VisionFeatures:
    """One video (or image) after the vision tower, as it is stored on disk and reused between
    questions.

    Attributes:
        tensor: LLaVA family: output of the tower before the projector ``[T, P, C_v]``; the Qwen
            families: after the patch merger ``[T, H, W, C]``, Qwen3-VL with the features of its
            deepstack layers behind them ``[T, H, W, (1 + D) * C]``; InternVL: after the projector
            ``[T, H, W, C]`` (an image: one T a tile).
        kind: ``"video"`` or ``"image"``.
        metadata: plain values: ``vid, video_time, frame_time, num_frames`` (LLaVA), or
            ``video_sample_fps, video_grid_thw`` (Qwen families), and ``video_fps, frame_indices``
            (Qwen3-VL). Images: ``image_size`` (height, width), ``image_grid_thw``.
        projected: True if ``tensor`` is ``[T, H, W, C]`` in the decoder's channels already, see
            :meth:`Family.project`.
    """

    tensor: torch.Tensor
    kind: str = "video"
    metadata: dict[str, Any] = field(default_factory=dict)
    projected: bool = False


@dataclass(frozen=True)
class Deepstack:
    """Visual features that a decoder adds to the hidden states behind its first layers (Qwen3-VL).

    Attributes:
        mask: ``[B, L]`` bool, the visual tokens.
        features: one ``[N, C]`` for each of the first layers, the N visual tokens of all rows in
            order.
    """

    mask: torch.Tensor
    features: tuple[torch.Tensor, ...]

    def inputs(self, rows: int, length: int) -> dict[str, Any]:
        """The decoder's arguments for the first ``length`` tokens, which hold all visuals, in
        ``rows`` equal rows."""
        times = rows // len(self.mask)
        return {
            "visual_pos_masks": self.mask[:, :length].repeat(times, 1),
            "deepstack_visual_embeds": [features.repeat(times, 1) for features in self.features],
        }


@dataclass(frozen=True)
class PreparedInput:
    """A prompt ready for the decoder: one sequence of L tokens, visual embeddings in place.

    Attributes:
        input_ids: ``[1, L]`` int64; visual tokens hold the checkpoint's video or image token id.
        inputs_embeds: ``[1, L, C]``.
        position_ids: ``[3, 1, L]`` int64 for M-RoPE decoders, None where positions are 0..L-1.
        spans: the video spans that may be reduced. Newline tokens are outside of every span, except
            in the newline modes ``grid`` and ``frame``, whose videos have no span (they are
            baselines and are not reduced).
        prefix_length: tokens that do not depend on the question: everything up to the last visual
            token and, where the checkpoint uses one, the time instruction after it.
        visual_tokens: all visual tokens of the sequence, newlines included.
        deepstack: what the decoder adds behind its first layers, None for decoders that add
            nothing.
    """

    input_ids: torch.Tensor
    inputs_embeds: torch.Tensor
    position_ids: torch.Tensor | None
    spans: tuple[VideoSpan, ...]
    prefix_length: int
    visual_tokens: int
    deepstack: Deepstack | None = None


@dataclass(frozen=True)
class Tokens:
    """The visual tokens of one video in front of a stage: what a reduction method gets.

    Attributes:
        features: ``[N, C]``, in sequence order.
        cells: ``[N, 3]`` int64 ``(t, y, x)``, the place of each token (of a merged token's
            representative).
        counts: ``[N]`` int64, original tokens that each of them stands for.
        grid: the (T, H, W) of the video before any reduction.
        head_dim: channels per attention head of the decoder, where a method compares head by head.
    """

    features: torch.Tensor
    cells: torch.Tensor
    counts: torch.Tensor
    grid: tuple[int, int, int]
    head_dim: int | None = None

    def __len__(self) -> int:
        return self.features.shape[0]

    @classmethod
    def of_grid(cls, features: torch.Tensor, head_dim: int | None = None) -> Tokens:
        """All tokens of an unreduced video ``[T, H, W, C]``."""
        t, h, w, _ = features.shape
        axes = [torch.arange(n, device=features.device) for n in (t, h, w)]
        cells = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).view(-1, 3)
        counts = torch.ones(t * h * w, dtype=torch.long, device=features.device)
        return cls(features.flatten(0, 2), cells, counts, (t, h, w), head_dim)

    def as_grid(self) -> torch.Tensor:
        """``[T, H, W, C]``. Raises ``ValueError`` if an earlier stage has already taken tokens out
        of the grid."""
        if len(self) != math.prod(self.grid):
            raise ValueError(f"{len(self)} tokens are left of the {self.grid} grid; this method needs all of it")
        return self.features.view(*self.grid, -1)

    def flat_cells(self) -> torch.Tensor:
        """``[N]`` int64: each token's place as an index into the flattened grid."""
        _, h, w = self.grid
        t, y, x = self.cells.unbind(-1)
        return (t * h + y) * w + x


@dataclass(frozen=True)
class Kept:
    """What a method made of :class:`Tokens`, in the order in which the tokens go on.

    Attributes:
        features: ``[N', C]``, dtype and device of the input.
        index: ``[N']`` int64, the input token that each kept one takes its place (and, where
            positions are kept, its rotary position) from.
        owner: ``[N]`` int64, for each input token the kept one that now stands for it; -1 where it
            was dropped.
        boxes: ``[N', 5]`` int64 ``(t, y0, x0, y1, x1)``, ends exclusive: the cells of the kept
            token's own node, for pictures; None where a token is one cell.
        info: plain numbers worth reporting, such as the thresholds that a budget search found.
    """

    features: torch.Tensor
    index: torch.Tensor
    owner: torch.Tensor
    boxes: torch.Tensor | None = None
    info: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.features.shape[0]

    @classmethod
    def select(cls, tokens: Tokens, index: torch.Tensor, **info: Any) -> Kept:
        """Keep the tokens ``index`` ``[N']`` in that order, as they are, and drop the others."""
        owner = torch.full((len(tokens),), -1, device=tokens.features.device)
        owner[index] = torch.arange(len(index), device=owner.device)
        return cls(tokens.features[index], index, owner, info=info)

    @classmethod
    def of_merged(cls, merged: MergedTokens) -> Kept:
        """The tokens of a merge of the whole grid."""
        _, height, width = merged.grid
        t, y, x = merged.boxes[:, :3].unbind(-1)
        index = (t * height + y) * width + x
        return cls(merged.features, index, merged.source_map.flatten(), merged.boxes, info=merged.info)


@dataclass(frozen=True)
class MergedTokens:
    """Visual tokens of one video after reduction, in sequence order (t, then top y, then left x).

    Attributes:
        features: ``[N', C]``, dtype and device of the input.
        boxes: ``[N', 5]`` int64 ``(t, y0, x0, y1, x1)`` in grid cells, ends exclusive: the place of
            the token's representative. Its top-left cell gives the token its position.
        counts: ``[N']`` int64, original tokens in each token. They sum to T*H*W for methods that
            merge; a method that drops tokens leaves the dropped ones out.
        source_map: ``[T, H, W]`` int64, index of the token that now stands for each original cell;
            -1 where a cell was dropped.
        info: plain numbers worth reporting, such as the thresholds that a budget search found.
    """

    features: torch.Tensor
    boxes: torch.Tensor
    counts: torch.Tensor
    source_map: torch.Tensor
    info: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.features.shape[0]

    @property
    def grid(self) -> tuple[int, int, int]:
        """The (T, H, W) of the input."""
        t, h, w = self.source_map.shape
        return t, h, w

    @property
    def budget(self) -> float:
        """Achieved budget: kept visual tokens / all visual tokens."""
        return len(self) / self.source_map.numel()
