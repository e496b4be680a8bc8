"""Fixtures that several folders of tests share."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from string import Template

import pytest
from skipped import skipped_groups


@dataclass(frozen=True)
class StockTasks:
    """lmms-eval's own tasks on small local data.

    Attributes:
        include_path: what ``--include_path`` wants.
        hf_home: what ``HF_HOME`` has to be; the tasks look for their videos below it.
        names: the tasks, each named as lmms-eval's own with ``_tiny`` added.
        videos: where the videos ``clip0.mp4`` and ``clip1.mp4`` of each task belong; the folders
            exist.
    """

    include_path: Path
    hf_home: Path
    names: tuple[str, ...]
    videos: dict[str, Path]


STOCK_VIDEOS = {
    "videomme": "videomme/data",
    "mlvu_dev": "mlvu",
    "longvideobench_val_v": "datasets/longvideobench/videos",
    "egoschema_subset": "egoschema/videos",
    "nextqa_mc_test": "nextqa/NExTVideo",
}


@pytest.fixture
def stock_tasks(tmp_path: Path) -> StockTasks:
    """The YAML files of ``tests/golden/stock`` with the paths of this machine filled in."""
    spec = find_spec("lmms_eval")
    if spec is None or spec.origin is None:
        pytest.skip("lmms-eval is not installed")
    golden = Path(__file__).parent / "golden" / "stock"
    include_path, hf_home = tmp_path / "stock_tasks", tmp_path / "hf_home"
    include_path.mkdir()
    for template in golden.glob("*.yaml"):
        text = Template(template.read_text()).substitute(lmms_eval=Path(spec.origin).parent, data=golden)
        (include_path / template.name).write_text(text)
    videos = {f"{name}_tiny": hf_home / folder for name, folder in STOCK_VIDEOS.items()}
    for folder in videos.values():
        folder.mkdir(parents=True)
    return StockTasks(include_path, hf_home, tuple(videos), videos)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=3, help="random moments at which test_kill_anywhere.py kills a run")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    lines = skipped_groups(report.longrepr[2] for report in terminalreporter.stats.get("skipped", []))
    if lines:
        terminalreporter.section("not run on this machine")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> int:
    return request.config.getoption("--kills")
