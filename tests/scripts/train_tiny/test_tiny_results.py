"""The committed tables of the embedded checkpoints are what their raw results say, and meet what was promised."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

RESULTS = Path(__file__).parents[3] / "results" / "tiny"


@pytest.fixture(scope="module", params=["llava_video", "qwen2_vl"])
def folder(request):
    return RESULTS / request.param


@pytest.fixture(scope="module")
def rows(folder):
    return json.loads((folder / "accuracy.json").read_text())


def test_the_tables_are_made_from_the_raw_results(rows, folder):
    from train_tiny.evaluate import table

    made = table(rows)
    assert (folder / "accuracy.md").read_text() == made
    assert made in (RESULTS / "README.md").read_text()


def test_accuracies_are_means_of_the_answers(rows):
    for row in rows:
        assert len(row["per_question"]) == row["questions"]
        assert row["all"]["accuracy"] == pytest.approx(row["per_question"].count("1") / row["questions"])


@pytest.mark.parametrize(("kind", "floor"), [("retrieval", 0.92), ("ordering", 0.90), ("counting", 0.75)])
def test_the_full_model_answers(rows, kind, floor):
    assert rows[0]["setting"] == "all tokens"
    assert rows[0]["questions"] >= 3 * 500
    assert rows[0][kind]["accuracy"] >= floor


def test_without_needles_it_guesses(rows):
    """Blind, it picks any object or order, and nearly always says the smallest number."""
    (blind,) = [row for row in rows if row["setting"] == "needle tokens removed (oracle)"]
    for kind, guess in (("retrieval", 0.25), ("ordering", 0.25), ("counting", blind["smallest"])):
        low, high = blind[kind]["interval"]
        assert low <= guess <= high


@pytest.mark.parametrize("how", ["budget", "thresholds for"])
@pytest.mark.parametrize(("share", "floor"), [("50%", 0.99), ("30%", 0.97)])
def test_merging_keeps_the_answers(rows, how, share, floor):
    from train_tiny.evaluate import relative

    (merged,) = [row for row in rows if row["setting"] == f"STTM, {how} {share}"]
    assert merged["kept"] == pytest.approx(float(share.rstrip("%")) / 100, abs=0.01)
    assert relative(merged, rows[0])[0] >= floor


@pytest.mark.parametrize("control", ["random tokens", "whole frames", "average pooling"])
def test_the_controls_lose_answers(rows, control):
    (lost,) = [row for row in rows if row["setting"] == f"{control}, 30%"]
    assert lost["all"]["accuracy"] <= rows[0]["all"]["accuracy"] - 0.15
