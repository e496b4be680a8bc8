"""The commands of docs/many_machines.md: two launchers, one process each, which meet at an address
of this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from test_killed_run import stored_answers
from warm_ranks import free_port, run_ranks
from wrapper_runs import HERE, MANY_QUESTIONS, MANY_VIDEOS, TASKS, read_run

from sttm_lmms.demo import shipped

pytestmark = pytest.mark.slow

TORCHRUN = (
    *("torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1", "--node_rank", "{node}"),
    *("--master_addr", "127.0.0.1", "--master_port", "{port}"),
)
ACCELERATE = (  # --multi_gpu is what starts processes; no GPU is needed for it
    *("accelerate.commands.launch", "--multi_gpu", "--num_machines", "2", "--num_processes", "2"),
    *("--machine_rank", "{node}", "--main_process_ip", "127.0.0.1", "--main_process_port", "{port}"),
)
QUICK, WHOLE = (str(HERE / "quick_eval.py"),), ("-m", "sttm_lmms", "eval")
ENDS_S = 60
"""Both launchers end within this time after a process of one of them is gone."""


def arguments(folder: Path, *more: str) -> list[str]:
    return [
        *("--model", "sttm_llava_video", "--model_args"),
        f"pretrained={shipped('llava_video')},budget=0.5,max_frames=16,device=cpu",
        *("--tasks", "vnbench", "--include_path", str(TASKS), "--log_samples", "--gen_kwargs", "max_new_tokens=4"),
        *("--output_path", str(folder / "out"), *more),
    ]


class Pair:
    """The same command under two launchers, as on two machines."""

    def __init__(self, data: Path, folder: Path, launcher: Sequence[str], program: Sequence[str], *more: str) -> None:
        port = free_port()
        environment = {**os.environ, "STTM_DATA_ROOT": str(data), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        self.logs, self.launchers = [folder / f"machine-{node}.log" for node in range(2)], []
        for node, log in enumerate(self.logs):
            words = [word.format(node=node, port=port) for word in launcher]
            with log.open("w") as file:
                self.launchers.append(
                    subprocess.Popen(
                        [sys.executable, "-m", *words, *program, *arguments(folder, *more)],
                        env=environment,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                    )
                )

    def codes(self, timeout: float) -> list[int | None]:
        """How the launchers ended; None for one that did not in ``timeout`` seconds, and is stopped
        now."""
        deadline = time.monotonic() + timeout
        while any(launcher.poll() is None for launcher in self.launchers) and time.monotonic() < deadline:
            time.sleep(0.05)
        codes = [launcher.poll() for launcher in self.launchers]
        for launcher in self.launchers:
            launcher.kill()
            launcher.wait()
        return codes

    def printed(self) -> str:
        return "\n".join(log.read_text()[-3000:] for log in self.logs)

    def process(self, node: int) -> int:
        """The process that answers on a machine."""
        launcher = self.launchers[node].pid
        (child,) = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
        return int(child)


@pytest.fixture(scope="module")
def alone(many_videos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    run_ranks(many_videos, folder / "one", arguments(folder), 1)
    return read_run(folder / "out")


def test_accelerate(many_videos, alone, tmp_path):
    pair = Pair(many_videos, tmp_path, ACCELERATE, QUICK)
    assert pair.codes(200) == [0, 0], pair.printed()
    two = read_run(tmp_path / "out")
    assert two.answers() == alone.answers()
    assert len(list((tmp_path / "out").rglob("*_results.json"))) == 1
    # One of the processes answers a padding request, which does not count; no video is seen by
    # both.
    for number in ("questions", "kept_share_min", "kept_share_mean", "reduced_share"):
        assert two.throughput[f"avg_{number}"] == pytest.approx(alone.throughput[f"avg_{number}"])
    assert two.throughput["avg_prefills"] == two.throughput["avg_videos_decoded"] == MANY_VIDEOS
    scores, expected = (found.results["results"]["vnbench"] for found in (two, alone))
    assert {name for name in scores if "stderr" not in name} == {name for name in expected if "stderr" not in name}
    assert all(scores[name] == expected[name] for name in scores if "stderr" not in name)


def test_torchrun_when_a_machine_dies(many_videos, alone, tmp_path):
    cache = ("--use_cache", str(tmp_path / "cache"))
    pair = Pair(many_videos, tmp_path, TORCHRUN, QUICK, *cache)
    deadline = time.monotonic() + 200
    while not stored_answers(tmp_path / "cache", rank=1) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(pair.process(node=1), signal.SIGKILL)
    killed = time.monotonic()
    assert not {None, 0} & set(codes := pair.codes(ENDS_S)), f"{codes} {pair.printed()}"
    print(f"\nboth launchers ended {time.monotonic() - killed:.1f} s after the kill")
    kept = stored_answers(tmp_path / "cache")
    assert 0 < kept < MANY_QUESTIONS, "it was not stopped in its middle"
    assert read_run(tmp_path / "out").results is None

    again = Pair(many_videos, tmp_path, TORCHRUN, WHOLE, *cache)
    assert again.codes(200) == [0, 0], again.printed()
    done = read_run(tmp_path / "out")
    print(f"{kept} answers stored, {done.throughput['avg_questions']:.0f} asked again")
    # A line that the kill cut off is asked again.
    assert done.throughput["avg_questions"] in (
        MANY_QUESTIONS - kept,
        MANY_QUESTIONS - kept + 1,
    )
    assert done.answers() == alone.answers()
    assert done.results["results"]["vnbench"]["accuracy,none"] == alone.results["results"]["vnbench"]["accuracy,none"]
