"""Every test of merging runs with both measures: the one of CPUs and the one of accelerators."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from measures import measured_by


@pytest.fixture(scope="module", params=["gather", "products"], autouse=True)
def measure(request: pytest.FixtureRequest) -> Iterator[str]:
    with measured_by(request.param):
        yield request.param
