"""What must hold of every :class:`Kept`, whatever the method."""

from __future__ import annotations

import torch

from sttm_lmms.types import Kept, Tokens


def video(grid: tuple[int, int, int], channels: int = 8, seed: int = 0, noise: float = 0.5) -> Tokens:
    """A random video whose frames resemble each other."""
    generator = torch.Generator().manual_seed(seed)
    still = torch.randn(1, *grid[1:], channels, generator=generator)
    return Tokens.of_grid(still + noise * torch.randn(*grid, channels, generator=generator))


def after(tokens: Tokens, kept: Kept | None) -> Tokens:
    """The tokens that go on, as the runtime hands them to the next stage."""
    if kept is None:
        return tokens
    counts = torch.zeros(len(kept), dtype=torch.long)
    alive = kept.owner >= 0
    counts.index_add_(0, kept.owner[alive], tokens.counts[alive])
    return Tokens(kept.features, tokens.cells[kept.index], counts, tokens.grid, tokens.head_dim)


def check_kept(tokens: Tokens, kept: Kept, *, merges: bool, ordered: bool = True) -> None:
    """Shapes, dtypes, and an owner map in which every kept token owns the place it stands at."""
    assert kept.features.shape == (len(kept.index), tokens.features.shape[1])
    assert kept.features.dtype == tokens.features.dtype
    assert kept.index.dtype == kept.owner.dtype == torch.long
    assert kept.owner.shape == (len(tokens),)
    assert torch.equal(kept.owner[kept.index], torch.arange(len(kept)))
    assert (kept.owner < len(kept)).all()
    assert (kept.owner >= (0 if merges else -1)).all()
    assert kept.features.isfinite().all()
    if ordered:
        assert (kept.index.diff() > 0).all()
    if not merges:
        assert torch.equal(kept.features, tokens.features[kept.index])
    if kept.boxes is not None:
        t, y, x = tokens.cells[kept.index].unbind(1)
        assert torch.equal(kept.boxes[:, :3], torch.stack((t, y, x), 1))
        assert (kept.boxes[:, 3:] > kept.boxes[:, 1:3]).all()
