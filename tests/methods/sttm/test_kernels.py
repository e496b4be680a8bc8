"""The kernel of the union: equal to torch's operations in Triton's interpreter, compiled, and what it saves."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path

import pytest
import torch
from test_dense_work import THRESHOLDS, work_of

from sttm_lmms.methods.sttm import STTMConfig, merge_video_tokens
from sttm_lmms.testing.synthetic import natural_features

MODULE = "sttm_lmms.methods.sttm.dense_kernels"


@pytest.fixture(autouse=True)
def path() -> str:
    """Instead of the fixture of the folder: these tests name the path."""
    return "triton"


@pytest.mark.slow
def test_equal_in_the_interpreter() -> None:
    """In a process of its own: Triton decides when a kernel is defined whether it is interpreted."""
    pytest.importorskip("triton")
    tests = Path(__file__).with_name("interpreted_kernels.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
@pytest.mark.parametrize("config", [THRESHOLDS, STTMConfig(budget=0.3)], ids=["thresholds", "budget"])
@pytest.mark.parametrize("size", [(128, 14, 14), (300, 27, 27)], ids=str)
def test_equal_on_a_gpu(size: tuple[int, int, int], config: STTMConfig) -> None:
    """Several times over: threads that do not wait for each other may be lucky once."""
    features = natural_features(*size, 64, rank=16, dtype=torch.bfloat16, device="cuda")
    expected = merge_video_tokens(features, config, _path="dense")
    for _ in range(10):
        merged = merge_video_tokens(features, config, _path="triton")
        assert torch.equal(merged.source_map, expected.source_map)
        assert torch.equal(merged.features, expected.features)
        assert merged.info == expected.info


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("write", [True, False])
def test_compiles_without_a_gpu(capability: int, write: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("triton")
    compiler = pytest.importorskip("triton.compiler")
    backends = pytest.importorskip("triton.backends.compiler")
    if "nvidia" not in triton.backends.backends:
        pytest.skip("this triton has no compiler for NVIDIA's GPUs")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernels = import_module(MODULE)
    outputs = ("level_out", "anchor_out", "owner_out", "link_out")
    signature = {
        "barrier": "*fp32",
        "similarity": "*fp32",
        "back": "*i64",
        "pair_row": "*i64",
        **dict.fromkeys(("spatial", "temporal"), "fp32" if write else "*fp32"),
        "scratch": "*i32",
        "counts": "*i32",
        **(
            dict.fromkeys(outputs[:3], "*i64") | {"link_out": "*fp32"} if write else dict.fromkeys(outputs, "constexpr")
        ),
        "frames": "i32",
        "cells": "i32",
    }
    constants = {"LEVELS": 3, "TEMPORAL": True, "WRITE": write, "BLOCK": kernels.BLOCK}
    constants |= {} if write else dict.fromkeys(outputs)
    source = compiler.ASTSource(kernels._settle, signature | dict.fromkeys(constants, "constexpr"), constants)
    compiled = triton.compile(
        source, target=backends.GPUTarget("cuda", capability, 32), options={"num_warps": kernels.WARPS}
    )
    assert compiled.asm["cubin"]
    code = compiled.asm["ptx"]
    # Tokens are lowered by atomic operations past the first-level cache, read past it, and all threads wait between.
    assert ".min.s32" in code
    assert "ld.global.cg" in code
    assert "bar.sync" in code


@pytest.mark.parametrize(
    ("config", "operations", "views", "reads", "launches"),
    [(THRESHOLDS, 50, 21, 1, 1), (STTMConfig(budget=0.5), 67, 27, 3, 4)],
    ids=["thresholds", "budget"],
)
def test_work(
    config: STTMConfig, operations: int, views: int, reads: int, launches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 128 frames of LLaVA-Video-7B; launches of the kernel come on top of operations."""
    pytest.importorskip("triton")
    launched = []

    class Kernel:
        def __getitem__(self, grid: tuple[int]) -> object:
            return lambda *arguments, **constants: launched.append(grid)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_module(MODULE), "_settle", Kernel())
        patch.setattr(torch.cuda, "device_of", lambda tensor: nullcontext())
        work, made = work_of((128, 14, 14, 3584), config, monkeypatch, path="triton")
    assert (work.total, work.views, made, len(launched) // 2) == (operations, views, reads, launches)


def test_without_triton_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    with pytest.raises(ImportError, match='_path="triton" needs triton, which PyTorch for CUDA on Linux brings'):
        merge_video_tokens(torch.ones(2, 4, 4, 8), THRESHOLDS, _path="triton")
