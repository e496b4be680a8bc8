"""scripts/reproduce.sh for real: a tiny checkpoint on a few generated videos."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "reproduce.sh"


@pytest.mark.slow
def test_one_cell(tmp_path):
    pytest.importorskip("lmms_eval")
    from sttm_lmms.benchmarks.mini import write_benchmark
    from sttm_lmms.testing.tiny import build_tiny_checkpoint

    checkpoint = build_tiny_checkpoint(tmp_path / "checkpoint", "llava_video")
    write_benchmark(tmp_path / "data", videos=2)
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "STTM_DATA_ROOT": str(tmp_path / "data"),
        "HF_HUB_OFFLINE": "1",
        "LMMS_EVAL_DATASETS_CACHE": str(tmp_path / "cache"),
    }
    command = ["bash", str(SCRIPT), "llava-video-7b", "vnbench", "50", "--pretrained", str(checkpoint)]
    command += ["--output", str(tmp_path / "out"), "--", "--limit", "4"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (file,) = (tmp_path / "out").rglob("*_results.json")
    content = json.loads(file.read_text())
    assert "accuracy,none" in content["results"]["sttm_vnbench"]
    assert "preset=paper-50:7b" in str(content["config"]["model_args"])
    (samples,) = (tmp_path / "out").rglob("*_samples_sttm_vnbench.jsonl")
    assert len(samples.read_text().splitlines()) == 4
