"""What a run leaves in its output folder, whenever it ends, and whenever others do. A function
plays lmms-eval."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sttm_lmms import output
from sttm_lmms.cli.evaluate import evaluate, option
from sttm_lmms.errors import STTMError
from sttm_lmms.model_wrappers import harness

NAMES = ["20261130_010203_results.json", "20261130_010203_samples_vnbench.jsonl"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs ``sttm-lmms eval`` with a function in place of lmms-eval, which gets the folder it is to
    write into."""

    def start(write, *args: str):
        def lmms_eval(args):
            folder = Path(option(args, "--output_path"))
            (folder / "org__model").mkdir(parents=True, exist_ok=True)
            return write(folder)

        monkeypatch.setattr(harness, "run_lmms_eval", lmms_eval)
        evaluate(["--tasks", "vnbench", f"--output_path={tmp_path / 'out'}", *args])

    return start


def sample(number: int) -> str:
    return json.dumps({"doc_id": number, "text": "a\u2028b\x85c"}, ensure_ascii=False) + "\n"


def whole(folder: Path) -> None:
    results, samples = (folder / "org__model" / name for name in NAMES)
    results.write_text(json.dumps({"output_path": str(folder)}))
    # Process by process, as lmms-eval writes them; a text may hold what other tools take for an end
    # of line.
    samples.write_text("".join(map(sample, (0, 3, 1, 4, 2))), encoding="utf-8")


def half(folder: Path) -> None:
    whole(folder)
    (folder / "org__model" / NAMES[1]).write_text('{"a": ')
    raise KeyboardInterrupt


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("[!.]*/*"))


def test_what_is_half_written_is_not_seen_and_goes_away(run, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(half)
    assert not visible(tmp_path / "out")
    assert not output.result_files(tmp_path)
    run(whole)
    assert visible(tmp_path / "out") == NAMES
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["org__model"]


def test_samples_are_in_the_order_of_the_documents(run, tmp_path):
    run(whole)
    file = tmp_path / "out" / "org__model" / NAMES[1]
    assert file.read_text(encoding="utf-8") == "".join(map(sample, range(5)))


def test_a_score_appears_after_its_samples(run, tmp_path, monkeypatch):
    replace, moved = os.replace, []
    monkeypatch.setattr(
        output.os, "replace", lambda source, target: (moved.append(target.name), replace(source, target))
    )
    run(whole)
    assert moved == NAMES[::-1]


def test_other_files_stay_and_the_result_file_tells_the_path_that_was_given(run, tmp_path):
    other = tmp_path / "out" / "org__model" / "20250101_000000_results.json"
    other.parent.mkdir(parents=True)
    other.write_text("mine")
    run(whole)
    assert other.read_text() == "mine"
    _, written = output.result_files(tmp_path)
    assert json.loads(written.read_text()) == {"output_path": str(tmp_path / "out")}


def test_only_the_first_process_moves_files(run, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    run(lambda folder: None)
    assert not visible(tmp_path / "out")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(STTMError, match="no new result file"):
        run(lambda folder: None)


def test_runs_of_the_same_second_both_keep_their_files(run, tmp_path):
    for _ in range(3):
        run(whole)
    stems = [f"20261130_01020{second}" for second in (3, 4, 5)]
    assert visible(tmp_path / "out") == sorted(stem + name.removeprefix(stems[0]) for stem in stems for name in NAMES)
    assert len(output.result_files(tmp_path)) == 3


def test_the_same_command_at_the_same_time_is_left_alone(tmp_path):
    mine = output.Output.of_run(tmp_path, "command")
    living, dead = (tmp_path / f"{mine.command}{pid}" for pid in (os.getppid(), 2**22 + 1))
    for folder in (mine.staged, living, dead):
        folder.mkdir(parents=True)
    mine.clear()
    assert [folder.exists() for folder in (mine.staged, living, dead)] == [False, True, False]
