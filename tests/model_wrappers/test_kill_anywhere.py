"""``kill -9`` at random moments of a run of two processes that reads ahead: nothing lost, nothing
asked twice.

pytest tests/model_wrappers/test_kill_anywhere.py --kills 10 -s
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from warm_ranks import group_alive, run_ranks, start_ranks, warm_up
from wrapper_runs import MANY_QUESTIONS as QUESTIONS
from wrapper_runs import TASKS, Run, answer_logs, read_run

from sttm_lmms.demo import shipped
from sttm_lmms.output import RESULTS

pytestmark = pytest.mark.slow

Answer = tuple[str, float]
"""The question's key in the cache, and when it was answered (seconds since 1970)."""
ENDS_S = 60
"""A process whose peer is gone ends within this time."""


@dataclass(frozen=True)
class Command:
    """One command with its output folder and its cache."""

    data: Path
    checkpoint: Path
    folder: Path

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def args(self) -> list[str]:
        settings = "budget=0.5,max_frames=16,device=cpu,prefetch=3,prefetch_workers=2"
        return [
            *("--model", "sttm_llava_video", "--model_args", f"pretrained={self.checkpoint},{settings}"),
            *("--tasks", "vnbench", "--include_path", str(TASKS), "--log_samples", "--gen_kwargs", "max_new_tokens=8"),
            *("--output_path", str(self.out), "--use_cache", str(self.folder / "cache")),
        ]

    def start(self):
        return start_ranks(self.data, self.folder / "log", self.args, 2)

    def finish(self) -> Run:
        return read_run(self.out, run_ranks(self.data, self.folder / "end", self.args, 2))

    def asked(self) -> list[Answer]:
        """What the model was asked so far. A line that the kill cut off does not count."""
        found = []
        for log in answer_logs(self.folder / "cache"):
            for line in log.read_text().splitlines():
                try:
                    answer = json.loads(line)
                except json.JSONDecodeError:
                    continue
                found.append((answer["cache_key"], answer["created_at"]))
        return found

    def check_files(self) -> None:
        """Every file is whole, and a score stands beside all of its samples."""
        files = [path for path in self.out.rglob("*") if path.is_file() and ".unfinished-" not in str(path)]
        assert all(path.suffix in (".json", ".jsonl") for path in files), files
        for path in files:
            lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
            assert all(isinstance(json.loads(line), dict) for line in lines), path
            assert path.suffix == ".json" or len(lines) == QUESTIONS
        scores = [path for path in files if path.name.endswith(RESULTS)]
        assert all(path.with_name(path.name.replace(RESULTS, "_samples_vnbench.jsonl")) in files for path in scores)


def comparable(run: Run) -> tuple[dict, dict]:
    """Scores, and samples by question without their records, which hold times."""
    samples = {sample["accuracy"]["question_id"]: dict(sample) for sample in run.samples["vnbench"]}
    assert len(samples) == QUESTIONS
    for sample in samples.values():
        del sample["token_counts"]
    return {name: run.results[name] for name in ("results", "n-samples", "versions", "task_hashes")}, samples


def counts(run: Run) -> dict[str, list]:
    """Token counts of the answers."""
    names = ("input_tokens", "output_tokens", "visual_tokens", "kept_tokens")
    records = {sample["accuracy"]["question_id"]: sample["token_counts"][0] for sample in run.samples["vnbench"]}
    return {question: [record[name] for name in names] for question, record in records.items()}


def kill(ranks, which=(0, 1)) -> None:
    for rank in which:
        ranks[rank].kill()
    for rank in ranks:
        rank.join(ENDS_S)
    assert all(rank.exitcode is not None for rank in ranks), f"a process did not end in {ENDS_S} s"
    deadline = time.monotonic() + 5  # the server that started them has to take note
    while any(group_alive(rank.pid) for rank in ranks) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(group_alive(rank.pid) for rank in ranks), "a process, or a zombie, is left"


@pytest.fixture(scope="module")
def command(many_videos, tmp_path_factory):
    """Makes commands that differ in nothing but their folder."""
    root = tmp_path_factory.mktemp("kills")

    def make(name: str) -> Command:
        (root / name).mkdir()
        return Command(many_videos, shipped("llava_video"), root / name)

    return make


@dataclass(frozen=True)
class Undisturbed:
    """A run to its end; in seconds how long to its first answer, from there to the last one, from
    there to its end."""

    run: Run
    phases: tuple[float, float, float]


@pytest.fixture(scope="module")
def undisturbed(command) -> Undisturbed:
    warm_up()
    whole = command("whole")
    started = time.time()
    run = whole.finish()
    ended = time.time()
    times = [moment for _, moment in whole.asked()]
    assert len(times) == len(counts(run)) == QUESTIONS
    whole.check_files()
    return Undisturbed(run, (min(times) - started, max(times) - min(times), ended - max(times)))


def check_end(run: Command, done: Run, known: Sequence[Answer], expected: Run) -> None:
    """``done`` is the end of a run that was killed when it had the answers ``known``."""
    asked = done.throughput.get("avg_questions", 0)
    print(f"{run.folder.name}: {len(known)} stored, {asked:.0f} asked in the end")
    # A kill may cut off a line of each process: that one is asked again.
    assert QUESTIONS - len(known) <= asked <= QUESTIONS - len(known) + 2
    check_answers(known, run.asked())
    assert comparable(done) == comparable(expected)
    assert counts(done) == counts(expected), "what was measured is kept with the answers"
    run.check_files()
    assert not list(run.out.glob(".*"))


def check_answers(before: Sequence[Answer], now: Sequence[Answer]) -> None:
    questions = [question for question, _ in now]
    assert set(before) <= set(now), "an answer was lost"
    assert len(questions) == len(set(questions)), "a question was asked twice"


def reaches(run: Command, ranks: Sequence[BaseProcess], answers: int, seconds: float) -> bool:
    """Wait for a number of answers and then some seconds; False if a process ended before."""
    since = None
    while all(rank.is_alive() for rank in ranks):
        if since is None and len(run.asked()) >= answers:
            since = time.monotonic()
        if since is not None and time.monotonic() - since >= seconds:
            return True
        time.sleep(0.003)
    return False


def test_whenever_it_is_killed(command, undisturbed, kills):
    draw = random.Random(0)
    print("\nundisturbed: first answer, last answer, end: {:.2f}, +{:.2f}, +{:.2f} s".format(*undisturbed.phases))
    number, known = 0, []
    run = command("run-0")
    for kill_number in range(kills):
        phase = (0, 1, 2, 1)[kill_number % 4]  # before the first answer, between the answers, after the last one
        seconds = draw.uniform(0, undisturbed.phases[phase])
        while True:
            ranks = run.start()
            answers = (0, len(known) + 1, QUESTIONS)[phase]
            if reaches(run, ranks, answers, seconds):
                break
            # It came to its end before that moment. A run from the beginning takes longer, and
            # should the clock have run on a busier machine, half the time will do.
            for rank in ranks:
                rank.join(ENDS_S)
            check_end(run, read_run(run.out), known, undisturbed.run)
            number, known, seconds = number + 1, [], seconds / 2
            run = command(f"run-{number}")
        kill(ranks)
        now = run.asked()
        print(f"{run.folder.name}: killed {seconds:.2f} s after answer {answers}, stored {len(known)} -> {len(now)}")
        check_answers(known, now)
        run.check_files()
        known = now
    check_end(run, run.finish(), known, undisturbed.run)


@pytest.mark.parametrize("victim", [0, 1])
def test_one_process_of_two(command, undisturbed, victim):
    run = command(f"victim-{victim}")
    ranks = run.start()
    assert reaches(run, ranks, answers=3, seconds=0)
    killed = time.monotonic()
    kill(ranks, (victim,))
    assert ranks[1 - victim].exitcode == 1
    known = run.asked()
    print(f"\nprocess {victim} killed: the other one ended {time.monotonic() - killed:.1f} s later")
    assert 3 <= len(known) < QUESTIONS
    assert not read_run(run.out).results
    check_end(run, run.finish(), known, undisturbed.run)
