"""lmms-eval as a command, and what it leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TASKS = HERE.parents[1] / "tasks"
FAMILIES = ("llava_video", "llava_onevision", "qwen2_vl")
VIDEOS, QUESTIONS = 3, 11
MANY_VIDEOS, MANY_QUESTIONS = 8, 15


@dataclass(frozen=True)
class Run:
    """What a run left: the result file's content, the samples of each task by question, and what it
    printed."""

    results: dict[str, Any] | None
    samples: dict[str, list[dict[str, Any]]]
    printed: str = ""

    @property
    def throughput(self) -> dict[str, float]:
        """The numbers of the results file, and those that the first answer of a task states."""
        records = [counts for lines in self.samples.values() for line in lines for counts in line["token_counts"]]
        stated = next((record["run"] for record in records if record and "run" in record), {})
        return {**self.results.get("throughput", {}), **{f"avg_{name}": value for name, value in stated.items()}}

    def answers(self, task: str = "vnbench") -> dict[str, str]:
        """Question -> answer, whatever the order of the documents was."""
        return {sample["accuracy"]["question_id"]: sample["filtered_resps"] for sample in self.samples[task]}


def lmms_eval(
    data: Path,
    out: Path,
    *args: str,
    launcher: tuple[str, ...] = (sys.executable,),
    tasks: str = "vnbench",
    **environment: str,
) -> Run:
    """The command line, without any network: every connection to another machine raises."""
    command = [*launcher, str(HERE / "offline.py"), "--tasks", tasks, "--log_samples", "--output_path", str(out), *args]
    if "--include_path" not in args:
        command += ["--include_path", str(TASKS)]
    process = subprocess.run(
        command,
        env={**os.environ, "STTM_DATA_ROOT": str(data), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=400,
    )
    return read_run(out, process.stdout)


def read_run(out: Path, printed: str = "") -> Run:
    files = sorted(out.rglob("*_results.json"))
    if not files:
        return Run(None, {}, printed)
    samples = {}
    for file in files[-1].parent.glob(f"{files[-1].name.removesuffix('results.json')}samples_*.jsonl"):
        task = file.stem.partition("_samples_")[2]
        samples[task] = [json.loads(line) for line in file.read_text().splitlines()]
    return Run(json.loads(files[-1].read_text()), samples, printed)


def answer_logs(cache: Path, rank: int | str = "*") -> list[Path]:
    """The cache's logs, where lmms-eval writes whatever the model says before anything else. A run
    may be going on."""
    return [Path(log) for log in glob(f"{cache}/**/rank_{rank}.audit.jsonl", recursive=True)]


def stored_answers(cache: Path, rank: int | str = "*") -> int:
    return sum(len(log.read_text().splitlines()) for log in answer_logs(cache, rank))
