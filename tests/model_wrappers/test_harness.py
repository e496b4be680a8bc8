"""The end of a run: what is left of the process group."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from sttm_lmms.model_wrappers import harness, screen


@pytest.fixture
def group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def test_the_group_is_left_after_a_run(group, monkeypatch):
    monkeypatch.setattr(harness, "main", dist.barrier)
    assert harness.run_lmms_eval([]) is None
    assert not dist.is_initialized()


def test_nothing_waits_for_the_others_after_an_error(group, monkeypatch):
    monkeypatch.setattr(harness, "main", lambda: screen.print_error(ValueError("no video")))
    assert "no video" in harness.run_lmms_eval([])
    assert dist.is_initialized()
