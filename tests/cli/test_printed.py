"""What `sttm-lmms eval` prints of lmms-eval's last table, with the table made by lmms-eval itself."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest

from sttm_lmms.cli.printed import READ, shorten, shorter_tables
from sttm_lmms.provenance import RunSummary

utils = pytest.importorskip("lmms_eval.utils")


@pytest.fixture
def table() -> str:
    numbers = {f"avg_{field.name}": 0.5 for field in fields(RunSummary)}
    throughput = {"total_gen_tokens": 12, "total_elapsed_time": 3.0, "avg_speed": 4.0, **numbers}
    results = {"vnbench": {"accuracy,none": 0.75, "alias": "vnbench"}}
    return utils.make_table({"results": results, "throughput": throughput, "versions": {}, "n-shot": {}})


def test_ten_numbers_stay_and_lmms_evals_own(table):
    rows = re.findall(r"^\| *(avg_\w+) *\|", shorten(table), re.MULTILINE)
    assert sorted(rows) == sorted(["avg_speed", *(f"avg_{name}" for name in READ)])
    assert len(READ) == 10
    left_out = len(fields(RunSummary)) - len(READ)
    assert shorten(table).endswith(f"\n{left_out} more numbers are in the result file: throughput\n")
    assert "accuracy" in shorten(table)


def test_other_text_stays_as_it_is():
    text = "a | avg_questions | b\n|Metric|Value|\n| avg_speed | 4 |\n\nno end of line"
    assert shorten(text) == text


def test_while_lmms_eval_runs(table, capsys):
    with shorter_tables():
        print(table)
    print(table)
    inside, _, after = capsys.readouterr().out.partition("more numbers")
    assert "avg_vision_passes" not in inside
    assert "avg_vision_passes" in after
