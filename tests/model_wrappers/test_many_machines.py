"""Two machines, played by two launchers on loopback: the answers of one process, and a run that outlives a process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from wrapper_runs import HERE, QUESTIONS, TASKS, lmms_eval, read_run

pytestmark = pytest.mark.slow

LAUNCHERS = {
    "torchrun": ("torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1", "--node_rank"),
    # Without GPUs, accelerate starts several processes only if it is told that there are GPUs.
    "accelerate": (
        *("accelerate.commands.launch", "--multi_gpu", "--num_machines", "2", "--num_processes", "2"),
        *("--machine_rank",),
    ),
}
ADDRESS = {
    "torchrun": ("--master_addr", "127.0.0.1", "--master_port"),
    "accelerate": ("--main_process_ip", "127.0.0.1", "--main_process_port"),
}


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return str(server.getsockname()[1])


def start_machines(launcher, data, args):
    """Both launchers, each with its processes in a group of its own."""
    port = free_port()
    environment = {**os.environ, "STTM_DATA_ROOT": str(data), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    # Both run ids are one, as the nodes of one job have one command: the cache of the first try is found by the next.
    environment["LMMS_CACHE_RUN_ID"] = "two-machines"
    machines = []
    for rank in range(2):
        start = [sys.executable, "-m", *LAUNCHERS[launcher], str(rank), *ADDRESS[launcher], port]
        command = [*start, str(HERE / "offline.py"), *args]
        machines.append(
            subprocess.Popen(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        )
    return machines


def finish(machines, timeout=400):
    return "\n".join(machine.communicate(timeout=timeout)[0] for machine in machines)


def workers_of(machine):
    """Process ids of a launcher's children."""
    done = subprocess.run(["pgrep", "-P", str(machine.pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in done.stdout.split()]


def stored_answers(cache):
    return sum(len(log.read_text().splitlines()) for log in cache.rglob("rank_*.audit.jsonl"))


def run_arguments(checkpoints, out, cache=None, tokens=4):
    return [
        *("--model", "sttm_llava_video", "--tasks", "vnbench", "--include_path", str(TASKS), "--log_samples"),
        *("--model_args", f"pretrained={checkpoints['llava_video']},budget=0.5,max_frames=4,device=cpu,prefetch=2"),
        *("--gen_kwargs", f"max_new_tokens={tokens}", "--output_path", str(out)),
        *(("--use_cache", str(cache)) if cache else ()),
    ]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_machines_give_the_answers_of_one_process(launcher, data, checkpoints, tmp_path):
    machines = start_machines(launcher, data, run_arguments(checkpoints, tmp_path / "two"))
    two = read_run(tmp_path / "two", finish(machines))
    assert two.results is not None, two.printed[-3000:]
    arguments = run_arguments(checkpoints, tmp_path / "one")
    one = lmms_eval(data, tmp_path / "one", *arguments[: arguments.index("--output_path")])
    assert two.answers() == one.answers()
    assert two.throughput["avg_questions"] == QUESTIONS


def test_a_process_is_killed_and_the_rerun_asks_only_the_rest(data, checkpoints, tmp_path):
    cache = tmp_path / "cache"
    arguments = run_arguments(checkpoints, tmp_path / "out", cache, tokens=200)
    machines = start_machines("torchrun", data, arguments)
    deadline = time.monotonic() + 300
    while stored_answers(cache) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    (victim,) = workers_of(machines[1])
    os.kill(victim, signal.SIGKILL)
    finish(machines)  # both launchers notice and stop their processes
    assert all(machine.returncode for machine in machines)
    kept = stored_answers(cache)
    assert 2 <= kept < QUESTIONS

    again = read_run(tmp_path / "out", finish(start_machines("torchrun", data, arguments)))
    assert again.results is not None, again.printed[-3000:]
    assert len(again.answers()) == QUESTIONS
    assert again.throughput["avg_questions"] <= QUESTIONS - kept + 2  # a line that a kill cuts off is asked again
