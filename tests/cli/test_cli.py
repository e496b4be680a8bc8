"""``sttm-lmms``: every command is there, mistakes end in one line, a missing extra names itself."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

from sttm_lmms import cli
from sttm_lmms.cli import COMMANDS, Command, main, run_command
from sttm_lmms.cli.evaluate import tasks_folder
from sttm_lmms.errors import STTMError


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_can_be_imported(name):
    module, attribute = COMMANDS[name].target.split(":")
    assert getattr(import_module(module), attribute) is not None


@pytest.mark.parametrize("name", [name for name in COMMANDS if not COMMANDS[name].raw])
def test_every_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    assert f"sttm-lmms {name}" in capsys.readouterr().out


def test_the_list_of_commands_imports_nothing_heavy():
    code = "import sys, sttm_lmms.cli; print({'torch', 'lmms_eval', 'transformers', 'matplotlib'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_a_mistake_ends_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["leaderboard", str(tmp_path / "nothing")])
    assert stopped.value.code == 1
    printed = capsys.readouterr().err
    assert printed.startswith("sttm-lmms: ")
    assert printed.count("\n") == 1


def test_a_missing_package_names_the_extra(monkeypatch, tmp_path):
    (tmp_path / "needs_more.py").write_text("import surely_not_installed\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(cli.COMMANDS, "tasks", Command("needs_more:run", "", extra="plot"))
    with pytest.raises(STTMError, match=r"tasks needs surely_not_installed.*pip install 'sttm-lmms\[plot\]'"):
        run_command("tasks", [])


def test_a_broken_module_of_ours_is_not_called_a_missing_package(monkeypatch):
    monkeypatch.setitem(cli.COMMANDS, "tasks", Command("sttm_lmms.not_there:run", ""))
    with pytest.raises(ModuleNotFoundError, match=r"sttm_lmms\.not_there"):
        run_command("tasks", [])


def test_tasks_prints_a_folder_with_task_files(capsys):
    with pytest.raises(SystemExit):
        main(["tasks"])
    assert capsys.readouterr().out.strip() == str(tasks_folder())
    assert list(tasks_folder().rglob("vnbench.yaml"))
