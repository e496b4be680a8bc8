"""scripts/slurm.sh with stand-ins for SLURM's commands: what every node would run."""

import os
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "slurm.sh"


def run(tmp_path, *arguments, **environment):
    for name, body in {"scontrol": "printf 'node1\\nnode2\\n'", "srun": 'printf "%s\\n" "$@"'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_one_launcher_a_node_and_one_process_a_gpu(tmp_path):
    job = {
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "8",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_ID": "7",
    }
    words = run(tmp_path, "--model", "sttm_llava_video", "--tasks", "a b", **job, STTM_OUTPUT="out").stdout.splitlines()
    for pair in (
        ["--nnodes", "2"],
        ["--nproc_per_node", "8"],
        ["--rdzv_endpoint", "node1:20007"],
        ["--use_cache", "out/cache"],
        ["--tasks", "a b"],
    ):
        assert words[words.index(pair[0]) + 1] == pair[1]
    assert words[words.index("--rdzv_id") + 2 :][:3] == ["-m", "sttm_lmms", "eval"]


def test_without_arguments_it_says_how(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 2
    assert "sbatch" in done.stderr
