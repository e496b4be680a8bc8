"""The merge benchmark end to end on a tiny case."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return import_module("bench_merge")


def test_writes_numbers_with_their_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench_merge = script(monkeypatch)
    sizes = [
        "--frames",
        "6",
        "4",
        "--grids",
        "6x10",
        "7x7",
        "--channels",
        "16",
        "--dtypes",
        "float32",
        "--shares",
        "0.5",
    ]
    bench_merge.main(["--device", "cpu", "--repeats", "1", "--out", str(tmp_path), *sizes])

    result = json.loads((tmp_path / "cpu.json").read_text())
    assert {"command", "date", "device", "torch"} <= set(result["header"])
    assert [row["shape"] for row in result["rows"]] == ["6x6x10x16", "4x6x10x16", "6x7x7x16", "4x7x7x16"]
    for row in result["rows"]:
        assert row["kept"] <= 0.5
        assert min(row["merge_ms"], row["with_search_ms"]) > 0
    assert "6x6x10x16" in (tmp_path / "cpu.md").read_text()


TINY = ["--device", "cpu", "--repeats", "1", "--frames", "4", "--grids", "7x7", "--channels", "16", "--shares", "0.5"]
PUBLISHED = """
from sttm_lmms.methods.sttm import STTMConfig, merge_video_tokens

def quadtree_build_video(_video_feature, threshold, temporal_thresh=-1.0, root_level=0):
    config = STTMConfig(threshold, temporal_thresh, root_level)
    merged = merge_video_tokens(_video_feature.permute(0, 2, 3, 1), config)
    return merged.features, merged.counts, merged.boxes
"""


def test_beside_the_published_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published code is called as its repository lays it out; here ours stands in for it."""
    folder = tmp_path / "checkout" / "token_merging_utils"
    folder.mkdir(parents=True)
    (folder / "quadtree_builder.py").write_text(PUBLISHED)
    arguments = ["--dtypes", "float32", "--reference", str(folder.parent), "--out", str(tmp_path)]
    script(monkeypatch).main([*TINY, *arguments])
    (row,) = json.loads((tmp_path / "cpu.json").read_text())["rows"]
    assert row["reference_kept"] == row["kept"]
    assert row["speedup"] == row["reference_ms"] / row["merge_ms"]


def test_a_reference_that_is_not_there_and_time_that_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    bench_merge = script(monkeypatch)
    with pytest.raises(SystemExit, match="no token_merging_utils"):
        bench_merge.main([*TINY, "--reference", str(tmp_path), "--out", str(tmp_path)])
    bench_merge.main([*TINY, "--minutes", "0", "--out", str(tmp_path)])
    assert "2 cases left out" in capsys.readouterr().out
