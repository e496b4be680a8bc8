"""The committed ablation tables are what their raw results say, and the plain set makes the spatial step work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from train_tiny.evaluate import table

RESULTS = Path(__file__).parents[3] / "results" / "spatial"
FOLDERS = ("plain", "textured", "control", "late_control")


def rows(folder):
    return {row["setting"]: row for row in json.loads((RESULTS / folder / "accuracy.json").read_text())}


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_tables_are_made_from_the_raw_results(folder):
    made = table(list(rows(folder).values()))
    assert (RESULTS / folder / "accuracy.md").read_text() == made
    assert made in (RESULTS / "README.md").read_text()


@pytest.mark.parametrize("folder", FOLDERS)
def test_accuracies_are_means_of_the_answers(folder):
    for row in rows(folder).values():
        assert len(row["per_question"]) == row["questions"]
        assert row["all"]["accuracy"] == pytest.approx(row["per_question"].count("1") / row["questions"])


@pytest.mark.parametrize("share", ["50%", "30%"])
def test_on_plain_videos_at_least_two_fifths_go_in_space(share):
    found = rows("plain")
    assert found[f"both, {share}"]["removed_in_space"] >= 0.4
    for half in ("both", "spatial only", "temporal only"):
        row = found[f"{half}, {share}"]
        assert row["questions"] >= 1200
        assert row["kept"] == pytest.approx(float(share.rstrip("%")) / 100, abs=0.02)


@pytest.mark.parametrize("folder", ["plain", "control", "late_control"])
def test_without_needles_it_guesses(folder):
    row = rows(folder)["needle tokens removed (oracle)"]
    low, high = row["retrieval"]["interval"]
    assert low <= 0.3
    assert high >= 0.2
