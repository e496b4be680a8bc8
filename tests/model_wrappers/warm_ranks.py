"""Processes of a run, forked from one that has imported everything: such a run costs little more
than its own work.

What a launcher does is left out: it sets the same variables, and is tested with a few runs of its
own.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Mapping, Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

from wrapper_runs import TASKS, Run, read_run

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        *("lmms_eval.__main__", "lmms_eval.evaluator", "datasets", "av", "nltk", "sacrebleu"),
        *("transformers.models.llava_onevision.modeling_llava_onevision", "transformers.models.qwen2.modeling_qwen2"),
        *("transformers.models.siglip.modeling_siglip", "transformers.models.qwen2.tokenization_qwen2"),
        *("sttm_lmms.cli.evaluate", "sttm_lmms.model_wrappers.harness", "sttm_lmms.model_wrappers.preflight"),
        *("sttm_lmms.model_wrappers.models", "sttm_lmms.testing.tiny"),
    ]
)


def free_port() -> str:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return str(server.getsockname()[1])


def warm_up() -> None:
    """Import everything now, so that the first run takes no longer than the next ones."""
    process = _context.Process(target=int)
    process.start()
    process.join()


def start_ranks(data: Path, log: Path, args: Sequence[str], world: int) -> list[BaseProcess]:
    """``sttm-lmms eval ARGS`` on ``world`` processes, each a group of its own, which print into
    ``log``.RANK."""
    common = _environment(data)
    if world > 1:
        common |= {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    ranks = []
    for rank in range(world):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if world > 1 else {}
        ranks.append(_start(list(args), common | own, f"{log}.{rank}"))
    return ranks


def warm_lmms_eval(data: Path, out: Path, *args: str, tasks: str = "vnbench", **environment: str) -> Run:
    """As ``wrapper_runs.lmms_eval`` in one process, for everything that lmms-eval's own start does
    not matter to."""
    command = ["--tasks", tasks, "--log_samples", "--output_path", str(out), *args]
    if "--include_path" not in args:
        command += ["--include_path", str(TASKS)]
    log = out.with_suffix(".log")
    warm_command(command, _environment(data) | environment, log)
    return read_run(out, log.read_text())


def warm_command(args: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
    """``lmms-eval ARGS`` in the current folder to its end; what it prints goes into ``log``."""
    process = _start(list(args), dict(environment), str(log), plain=True)
    process.join(200)
    assert process.exitcode is not None, "still running"


def run_ranks(data: Path, out: Path, args: Sequence[str], world: int, timeout: float = 200) -> str:
    """Run to the end; what was printed. Raises ``AssertionError`` with that if a process failed."""
    log = out.with_suffix(".log")
    ranks = start_ranks(data, log, args, world)
    for process in ranks:
        process.join(timeout)
    printed = "\n".join(path.read_text() for path in sorted(log.parent.glob(f"{log.name}.*")))
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
    assert codes == [0] * world, f"{codes}\n{printed[-3000:]}"
    return printed


def group_alive(group: int) -> bool:
    """Whether any process of a group is left: the leader's children stay in it."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _environment(data: Path) -> dict[str, str]:
    return {"STTM_DATA_ROOT": str(data), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def without_default_tasks() -> None:
    """Reading the 3,000 task files of lmms-eval takes longer than the rest of such a run: leave
    them out."""
    import lmms_eval.__main__ as command

    command.TaskManager = partial(command.TaskManager, include_defaults=False)


def _start(args: list[str], environment: dict[str, str], log: str, plain: bool = False) -> BaseProcess:
    process = _context.Process(target=_rank, args=(args, environment, log, os.getcwd(), plain))
    process.start()
    return process


def _rank(args: list[str], environment: dict[str, str], log: str, folder: str, plain: bool) -> None:
    """``sttm-lmms eval``, or ``lmms-eval`` where it is to be ``plain``."""
    os.setpgid(0, 0)
    os.chdir(folder)
    os.environ.update(environment)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    import datasets
    import offline

    from sttm_lmms.cli.evaluate import evaluate

    without_default_tasks()
    if "HF_HOME" in environment:
        datasets.config.HF_DATASETS_CACHE = Path(environment["HF_HOME"], "datasets")  # read when it was imported
    if plain:
        offline.lmms_eval(args)
    else:
        evaluate(args)
