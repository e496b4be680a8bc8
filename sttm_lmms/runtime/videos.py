"""The visual tokens of a batch at the stages of a method, and the one place where a method is
called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import torch
from transformers.cache_utils import Cache

from sttm_lmms.methods.base import Method, Stage
from sttm_lmms.runtime.probe import AttentionInputs, VideoProbe
from sttm_lmms.runtime.reduced_cache import CachedVideo
from sttm_lmms.types import Kept, MergedTokens, Tokens, VideoSpan


@dataclass
class VideoTokens:
    """One video of one sequence: which of its tokens are left, and where they stand.

    Attributes:
        span: where the video was before any reduction.
        pieces: ``(start, length)`` of each of its runs in the row as it is now, without padding.
        tokens: the tokens that are left; their features are filled in at each stage.
        owner: ``[T*H*W]`` int64, the token that now stands for each original cell; -1 where it was
            dropped.
        boxes: ``[N, 5]`` int64, see :class:`~sttm_lmms.types.Kept`; None where every token is one
            cell.
        piece_ends: ends of the pieces, counted in original cells.
        state: what the method itself remembers of the video.
        info: plain numbers that the method reported.
    """

    span: VideoSpan
    pieces: list[tuple[int, int]]
    tokens: Tokens
    owner: torch.Tensor
    boxes: torch.Tensor | None = None
    piece_ends: list[int] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, span: VideoSpan, padding: int, hidden: torch.Tensor, head_dim: int | None) -> VideoTokens:
        """The whole video; ``padding`` tokens in front of its row do not count."""
        t, h, w = span.grid
        tokens = Tokens.of_grid(hidden.new_empty(t, h, w, 0), head_dim)
        owner = torch.arange(span.length, device=hidden.device)
        pieces = [(start - padding, length) for start, length in span.runs]
        return cls(span, pieces, tokens, owner, piece_ends=list(accumulate(length for _, length in pieces)))

    def select(self, values: torch.Tensor) -> torch.Tensor:
        """What of a row ``[S, ...]`` belongs to the video."""
        runs = [values[start : start + length] for start, length in self.pieces]
        return runs[0] if len(runs) == 1 else torch.cat(runs)

    def take(self, kept: Kept) -> Kept:
        """Go on with ``kept``; returns it with its tokens grouped by the pieces of their
        representatives."""
        if len(self.pieces) > 1:
            kept, lengths = self._grouped(kept)
        else:
            lengths = [len(kept)]
        self.pieces = [(start, length) for (start, _), length in zip(self.pieces, lengths, strict=True)]
        # Cells dropped at an earlier stage stay dropped; the others follow the token they had
        # joined.
        owner = kept.owner
        gone = self.owner < 0
        self.owner = torch.where(gone, self.owner, owner[self.owner.clamp(min=0)])
        counts = torch.zeros(len(kept) + 1, dtype=torch.long, device=owner.device)
        counts.index_add_(0, owner % (len(kept) + 1), self.tokens.counts)  # dropped ones (-1) go to the last place
        if kept.boxes is not None or self.boxes is not None:
            self.boxes = kept.boxes if kept.boxes is not None else self.boxes[kept.index]  # type: ignore[index]
        before = self.tokens
        self.tokens = Tokens(before.features[:0], before.cells[kept.index], counts[:-1], before.grid, before.head_dim)
        self.info.update(kept.info)
        return kept

    def cached(self, before: int) -> CachedVideo:
        """The video in a layer of the KV cache that held ``before`` tokens."""
        (start, _), (last, length) = self.pieces[0], self.pieces[-1]
        return CachedVideo(self.state, range(before + start, before + last + length), self.span.length)

    def _grouped(self, kept: Kept) -> tuple[Kept, list[int]]:
        ends = torch.tensor(self.piece_ends, device=kept.index.device)
        piece = torch.searchsorted(ends, self.tokens.flat_cells()[kept.index], right=True)
        order = piece.argsort(stable=True)
        lengths = torch.bincount(piece, minlength=len(self.piece_ends)).tolist()
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device)
        owner = torch.where(kept.owner < 0, kept.owner, place[kept.owner.clamp(min=0)])
        boxes = None if kept.boxes is None else kept.boxes[order]
        return Kept(kept.features[order], kept.index[order], owner, boxes, kept.info), lengths

    def merged(self) -> MergedTokens:
        """Boxes, counts and source map over all stages so far, without features."""
        cells = self.tokens.cells
        boxes = self.boxes if self.boxes is not None else torch.cat((cells, cells[:, 1:] + 1), 1)
        empty = torch.empty(len(cells), 0, device=cells.device)
        return MergedTokens(empty, boxes, self.tokens.counts, self.owner.view(self.span.grid), dict(self.info))


@dataclass(frozen=True)
class Batch:
    """Which tokens a batch holds by now; rows are padded on the left to the longest one.

    Attributes:
        index: ``[B, S]`` int64, place in the unreduced sequence of each token (of a merged token's
            representative); None as long as nothing was reduced.
        mask: ``[B, S]`` bool, False at padding; None without padding.
        padding: padding tokens in front of each row.
    """

    index: torch.Tensor | None
    mask: torch.Tensor | None
    padding: list[int]


def reduce_videos(
    method: Method,
    stage: Stage,
    hidden: torch.Tensor,
    batch: Batch,
    videos: Sequence[VideoTokens],
    *,
    layers: int,
    attention: AttentionInputs | None = None,
    cache: Cache | None = None,
) -> tuple[torch.Tensor, Batch, list[Kept | None]]:
    """Hand every video of a batch to the method at one of its stages and close the gaps; all else
    stays as it is.

    Args:
        hidden: ``[B, S, C]``, the tokens of ``batch``.
        layers: of the decoder.
        attention, cache: of the layer whose attention the method may ask for.

    Returns:
        Hidden states and batch (the same objects if no video was reduced), and what became of each
        video.
    """
    results: list[Kept | None] = []
    for video in videos:
        row = video.span.row
        padding = batch.padding[row]
        tokens = replace(video.tokens, features=video.select(hidden[row, padding:]))
        probe = VideoProbe(layers, attention, cache, row, padding, tuple(video.pieces))
        results.append(method.reduce(tokens, stage.layer, probe, video.state))
    if all(kept is None for kept in results):
        return hidden, batch, results
    rows = []
    for row, padding in enumerate(batch.padding):
        states = hidden[row, padding:]
        if batch.index is None:
            index = torch.arange(padding, padding + len(states), device=states.device)
        else:
            index = batch.index[row, padding:]
        mine = [number for number, video in enumerate(videos) if video.span.row == row]
        mine.sort(key=lambda number: videos[number].pieces[0][0])
        rows.append(_close_gaps(states, index, mine, videos, results))
    return *_padded(rows), results


def _close_gaps(
    states: torch.Tensor,
    index: torch.Tensor,
    numbers: Sequence[int],
    videos: Sequence[VideoTokens],
    results: list[Kept | None],
) -> tuple[torch.Tensor, torch.Tensor]:
    """One row ``[S, C]`` and ``[S]`` with what was kept of its videos in their places; the videos
    and results are brought up to date."""
    parts: list[tuple[torch.Tensor, torch.Tensor]] = []
    end = shift = 0  # of what has been copied, and how far tokens behind it move
    for number in numbers:
        video, kept = videos[number], results[number]
        old, features, places = list(video.pieces), video.select(states), video.select(index)
        if kept is not None:
            kept = results[number] = video.take(kept)
            features, places = kept.features, places[kept.index]
        begin = 0
        for piece, (start, length) in enumerate(old):
            new = video.pieces[piece][1]
            # Text in front of the piece (timestamps, separators), then the piece's own survivors.
            parts.append((states[end:start], index[end:start]))
            parts.append((features[begin : begin + new], places[begin : begin + new]))
            video.pieces[piece] = (start + shift, new)
            end, begin, shift = start + length, begin + new, shift + new - length
    parts.append((states[end:], index[end:]))
    return torch.cat([state for state, _ in parts]), torch.cat([place for _, place in parts])


def _padded(rows: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, Batch]:
    """Hidden states and indices of rows of any lengths as one batch."""
    lengths = [len(index) for _, index in rows]
    longest = max(lengths)
    padding = [longest - length for length in lengths]
    if not any(padding):
        hidden = rows[0][0][None] if len(rows) == 1 else torch.stack([h for h, _ in rows])
        return hidden, Batch(torch.stack([i for _, i in rows]), None, padding)
    first = rows[0][0]
    hidden = first.new_zeros(len(rows), longest, first.shape[-1])
    index = torch.zeros(len(rows), longest, dtype=torch.long, device=first.device)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool, device=first.device)
    for row, (features, places) in enumerate(rows):
        hidden[row, padding[row] :], index[row, padding[row] :], mask[row, padding[row] :] = features, places, True
    return hidden, Batch(index, mask, padding)


def reduce_grid(method: Method, features: torch.Tensor, head_dim: int | None = None) -> MergedTokens:
    """What a method makes of one video's features ``[T, H, W, C]`` at its first stage, outside of
    any model.

    Raises:
        ValueError: the method reads attention, or removes no tokens, so that features alone say
            nothing.
    """
    stages = method.stages(1_000_000)
    if method.reads == "attention" or not stages:
        raise ValueError(f"method={method.name} needs a model (--model): features alone do not say what it keeps")
    stage = stages[0] if isinstance(stages[0], Stage) else Stage(stages[0])
    t, h, w, _ = features.shape
    video = VideoTokens.of(VideoSpan(0, (t, h, w)), 0, features, head_dim)
    hidden, _, _ = reduce_videos(method, stage, features.flatten(0, 2)[None], Batch(None, None, [0]), [video], layers=1)
    return replace(video.merged(), features=hidden[0])
