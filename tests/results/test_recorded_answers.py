"""The committed tables of the trained toys are what their raw answers say, and meet what was
promised."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

RESULTS = Path(__file__).parents[2] / "results"
TINY = ("tiny/llava_video", "tiny/qwen2_vl")
SPATIAL = ("spatial/plain", "spatial/textured", "spatial/control", "spatial/late_control")
KINDS = ("retrieval", "ordering", "counting", "all")
TRIES = 4


def read(folder: str) -> dict[str, dict]:
    return {row["setting"]: row for row in json.loads((RESULTS / folder / "accuracy.json").read_text())}


def relative(row: dict, base: dict) -> tuple[float, float, float]:
    """Accuracy / accuracy of ``base`` on the same questions, and its 95% interval (bootstrap over
    videos)."""
    ours, theirs = (np.array([*map(int, r["per_question"])], dtype=float).reshape(-1, TRIES) for r in (row, base))
    theirs = theirs[: len(ours)]
    draws = np.random.default_rng(0).integers(len(ours), size=(2000, len(ours)))
    ratios = ours.mean(1)[draws].mean(1) / theirs.mean(1)[draws].mean(1)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return float(ours.mean() / theirs.mean()), float(low), float(high)


def percent(mean: float, interval: tuple[float, float] | list[float]) -> str:
    return f"{100 * mean:.1f} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


@pytest.mark.parametrize("folder", [*TINY, *SPATIAL])
def test_every_line_is_made_from_the_raw_answers(folder):
    rows = read(folder)
    table = (RESULTS / folder / "accuracy.md").read_text()
    lines = table.splitlines()[2:]
    assert len(lines) == len(rows)
    for line, (name, row) in zip(lines, rows.items(), strict=True):
        assert len(row["per_question"]) == row["questions"]
        assert row["all"]["accuracy"] == pytest.approx(row["per_question"].count("1") / row["questions"])
        cells = [name, str(row["questions"]), f"{100 * row['kept']:.1f}"]
        if folder in SPATIAL:
            cells.append(f"{100 * row['removed_in_space']:.1f}" if "removed_in_space" in row else "")
        cells += [percent(row[kind]["accuracy"], row[kind]["interval"]) for kind in KINDS]
        ratio, *interval = relative(row, rows["all tokens"])
        assert line == f"| {' | '.join([*cells, percent(ratio, interval)])} |"


@pytest.mark.parametrize("page", ["tiny", "spatial"])
def test_the_rows_of_a_page_are_rows_of_the_tables(page):
    tables = {line for file in (RESULTS / page).glob("*/accuracy.md") for line in file.read_text().splitlines()}
    text = (RESULTS / page / "README.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("|") and re.search(r"\d \[", line)]
    assert len(rows) == 18
    assert set(rows) <= tables
    assert all(f"{file.parent.name}/accuracy.md" in text for file in (RESULTS / page).glob("*/accuracy.md"))


@pytest.mark.parametrize("folder", TINY)
def test_the_toys_answer_and_see(folder):
    rows = read(folder)
    full, blind = rows["all tokens"], rows["needle tokens removed (oracle)"]
    assert full["questions"] >= 3 * 500
    for kind, floor in (("retrieval", 0.92), ("ordering", 0.90), ("counting", 0.75)):
        assert full[kind]["accuracy"] >= floor
    # Without needles they pick any object or order, and nearly always say the smallest number.
    for kind, guess in (("retrieval", 0.25), ("ordering", 0.25), ("counting", blind["smallest"])):
        low, high = blind[kind]["interval"]
        assert low <= guess <= high


@pytest.mark.parametrize("folder", TINY)
def test_merging_keeps_answers_and_controls_lose_them(folder):
    rows = read(folder)
    for how in ("budget", "thresholds for"):
        for share, floor in ((50, 0.99), (30, 0.97)):
            merged = rows[f"STTM, {how} {share}%"]
            assert merged["kept"] == pytest.approx(share / 100, abs=0.01)
            assert relative(merged, rows["all tokens"])[0] >= floor
    for control in ("random tokens", "whole frames", "average pooling"):
        assert rows[f"{control}, 30%"]["all"]["accuracy"] <= rows["all tokens"]["all"]["accuracy"] - 0.15


@pytest.mark.parametrize("share", [50, 30])
def test_on_plain_videos_at_least_two_fifths_go_in_space(share):
    rows = read("spatial/plain")
    assert rows[f"both, {share}%"]["removed_in_space"] >= 0.4
    for half in ("both", "spatial only", "temporal only"):
        assert rows[f"{half}, {share}%"]["questions"] >= 1200
        assert rows[f"{half}, {share}%"]["kept"] == pytest.approx(share / 100, abs=0.02)


@pytest.mark.parametrize("folder", ["spatial/plain", "spatial/control", "spatial/late_control"])
def test_without_needles_the_fine_models_guess(folder):
    low, high = read(folder)["needle tokens removed (oracle)"]["retrieval"]["interval"]
    assert low <= 0.3
    assert high >= 0.2


@pytest.mark.parametrize("name", ["qwen2.5-0.5b", "smollm2-135m"])
def test_the_tables_of_real_decoders_are_made_from_the_committed_answers(name, tmp_path, monkeypatch):
    import real_decoder_tables

    monkeypatch.setattr(real_decoder_tables, "plot", lambda *_: None)
    folder = RESULTS / "real_decoder" / name
    for file in ("cases.jsonl", "about.json"):
        (tmp_path / file).write_text((folder / file).read_text())
    real_decoder_tables.write_tables(tmp_path)
    assert (tmp_path / "accuracy.md").read_text() == (folder / "accuracy.md").read_text()
