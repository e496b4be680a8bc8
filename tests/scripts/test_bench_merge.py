"""The merge benchmark end to end on a tiny case."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


def test_writes_numbers_with_their_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import bench_merge

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
        assert min(row["merge_ms"], row["with_search_ms"], row["pairwise_ms"]) > 0
    assert "6x6x10x16" in (tmp_path / "cpu.md").read_text()
