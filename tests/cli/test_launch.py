"""One run of lmms-eval: where its files go, and what happens to other people's."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sttm_lmms.cli.launch import launch
from sttm_lmms.errors import STTMError

# Stands for lmms-eval: writes the files that it writes, in the folder that it got as --output_path.
WRITES = """
import sys, pathlib
folder = pathlib.Path(sys.argv[sys.argv.index("--output_path") + 1]) / "org__model"
folder.mkdir(exist_ok=True)
assert "--log_samples" in sys.argv
(folder / "20261125_010203_results.json").write_text(sys.argv[1])
(folder / "20261125_010203_samples_vnbench.jsonl").write_text("samples of " + sys.argv[1])
print("done")
"""


def run(word: str, folder: Path, script: str = WRITES) -> Path:
    return launch([word], folder, launcher=(sys.executable, "-c", script))


def test_the_files_get_names_that_stay(tmp_path):
    folder = tmp_path / "a" / "run"
    assert run("first", folder) == folder / "results.json"
    assert run("second", folder).read_text() == "second"
    assert (folder / "samples_vnbench.jsonl").read_text() == "samples of second"
    assert sorted(path.name for path in folder.rglob("*")) == ["log.txt", "results.json", "samples_vnbench.jsonl"]
    assert (folder / "log.txt").read_text() == "done\n"


def test_other_files_stay(tmp_path):
    mine = tmp_path / "org__model" / "20250101_000000_results.json"
    mine.parent.mkdir()
    mine.write_text("mine")
    (tmp_path / "notes.txt").write_text("notes")
    assert run("ours", tmp_path).read_text() == "ours"
    assert mine.read_text() == "mine"
    assert [path.name for path in mine.parent.iterdir()] == [mine.name]
    assert (tmp_path / "notes.txt").read_text() == "notes"


def test_a_failed_run_shows_what_was_printed_and_keeps_the_last_result(tmp_path):
    run("good", tmp_path)
    with pytest.raises(STTMError, match="it went wrong"):
        run("bad", tmp_path, "print('it went wrong')")
    assert (tmp_path / "results.json").read_text() == "good"
