"""Every test of merging runs on both paths: the one of CPUs and the one of GPUs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sttm_lmms.methods.sttm import merge


@pytest.fixture(scope="module", params=["sparse", "dense"], autouse=True)
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merge, "default_path", lambda device: request.param)
        yield request.param
