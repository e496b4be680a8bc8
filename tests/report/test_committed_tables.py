"""Tables in results/ say what the run files beside them say: each is made again by the command that
it names."""

import re
import shlex
from html import unescape
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from sttm_lmms.report.cli import leaderboard

pytest.importorskip("pandas")
pytest.importorskip("matplotlib")
ROOT = Path(__file__).parents[2]
TABLES = [file for file in sorted(ROOT.glob("results/**/leaderboard*")) if file.suffix in (".md", ".html", ".tex")]


def command_of(table):
    """The words after ``sttm-lmms leaderboard`` in a table's last line."""
    found = re.search(r"Made with (?:`|<code>)(sttm-lmms leaderboard .*?)(?:`|</code>)", table.read_text("utf-8"))
    assert found, f"{table} does not say how it was made"
    return shlex.split(unescape(found[1]))[2:]


def check(table, root, monkeypatch):
    monkeypatch.chdir(root)
    app = typer.Typer()
    app.command()(leaderboard)
    return CliRunner().invoke(app, [*command_of(table), "--check", str(table)])


@pytest.mark.parametrize("table", TABLES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_committed_table_matches_its_runs(table, monkeypatch):
    result = check(table, ROOT, monkeypatch)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("name", ["leaderboard.md", "leaderboard.html", "leaderboard.tex"])
def test_the_check_works(recorded, tmp_path, monkeypatch, name):
    """The same way on tables made here: a true one passes, a changed number does not."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").symlink_to(recorded)
    leaderboard([Path("runs")], out=Path(name), name=["vnbench=Toy & more"], title="It's a <toy>", paper=True)
    table = tmp_path / name
    assert check(table, tmp_path, monkeypatch).exit_code == 0
    table.write_text(table.read_text("utf-8").replace("65.0", "75.0"), "utf-8")
    assert check(table, tmp_path, monkeypatch).exit_code == 1
