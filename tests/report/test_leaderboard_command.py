"""The leaderboard command: files, formats and the check that keeps committed tables true."""

import shutil

import pytest
import typer
from typer.testing import CliRunner

from sttm_lmms.report.cli import leaderboard

pytest.importorskip("pandas")
pytest.importorskip("matplotlib")
app = typer.Typer()
app.command()(leaderboard)


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_prints_markdown(recorded):
    result = invoke(recorded)
    assert result.exit_code == 0
    assert result.stdout.startswith("# Leaderboard\n")


def test_writes_by_the_files_ending(recorded, tmp_path):
    html = tmp_path / "new" / "board.html"
    result = invoke(recorded, "--out", html, "--plots", tmp_path / "plots", "--title", "Toy", "--paper")
    assert result.exit_code == 0
    text = html.read_text()
    assert "<title>Toy</title>" in text
    assert text.count("<svg") == 2
    assert "Accuracy against the time to the first token" in text
    assert len(list((tmp_path / "plots").iterdir())) == 4


@pytest.mark.parametrize("name", ["board.md", "board.csv", "board.tex", "board.html"])
def test_check_accepts_what_out_wrote(recorded, tmp_path, name):
    assert invoke(recorded, "--out", tmp_path / name).exit_code == 0
    result = invoke(recorded, "--check", tmp_path / name)
    assert result.exit_code == 0
    assert "matches the run files" in result.stdout


def test_check_refuses_a_touched_up_table(recorded, tmp_path):
    file = tmp_path / "board.md"
    invoke(recorded, "--out", file)
    file.write_text(file.read_text().replace("| 65.0 [", "| 75.0 ["))
    result = invoke(recorded, "--check", file)
    assert result.exit_code == 1
    assert "-| tiny/llava-video | sttm | budget 0.3" in result.stdout
    assert f"write it again with --out {file}" in result.output


def test_check_notices_a_missing_run(recorded, tmp_path):
    runs, file = tmp_path / "runs", tmp_path / "board.md"
    shutil.copytree(recorded, runs)
    invoke(runs, "--out", file)
    shutil.rmtree(runs / "sttm-50")
    assert invoke(runs, "--check", file).exit_code == 1


def test_check_of_no_file(recorded, tmp_path):
    result = invoke(recorded, "--check", tmp_path / "none.md")
    assert result.exit_code == 1
    assert "no such file" in result.stdout


def test_methods_at_equal_budgets(recorded, tmp_path):
    result = invoke(recorded, "--reference", "sttm")
    assert result.exit_code == 0, result.output
    header = next(line for line in result.stdout.splitlines() if line.startswith("| Model"))
    assert header.startswith("| Model | Method | Budget | Setting | vnbench | sttm_videomme | Relative | Kept | ")
    assert invoke(recorded, "--reference", "sttm", "--out", tmp_path / "board.html").exit_code == 0
    assert invoke(recorded, "--reference", "sttm", "--check", tmp_path / "board.html").exit_code == 0


def test_a_column_can_be_renamed(recorded):
    result = invoke(recorded, "--name", "vnbench=Mini-VNBench", "--paper")
    header = next(line for line in result.stdout.splitlines() if line.startswith("| Model"))
    assert "| VNBench | VideoMME |" in header, "the paper's column stays"
    assert "| Mini-VNBench |" in header
    assert isinstance(invoke(recorded, "--name", "vnbench").exception, ValueError)
