"""Which of the two ways similarities are measured, on any machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from sttm_lmms.methods.sttm import grid


@contextmanager
def measured_by(measure: str) -> Iterator[None]:
    """Inside, similarities are measured by ``"gather"``, or by ``"products"`` as on
    accelerators."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid, "is_accelerator", lambda device: measure == "products")
        grid.grid_for.cache_clear()
        yield
    grid.grid_for.cache_clear()
