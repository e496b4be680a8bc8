"""The group ``sttm_field``: lmms-eval's own tasks, their layouts, no judge."""

from __future__ import annotations

import importlib
import sys
from functools import partial
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from string import Template

import pytest
import yaml

pytest.importorskip("lmms_eval")

from lmms_eval.tasks import TaskManager, get_task_dict

ROOT = Path(__file__).parents[2]
MEMBERS = yaml.safe_load((ROOT / "tasks" / "sttm_field.yaml").read_text())["task"]
STOCK, FIELD = (ROOT / "tests" / "golden" / name for name in ("stock", "field"))
VIDEOS = {
    "mvbench_action_sequence": "mvbench_video/star/Charades_segment",
    "videomme_v2": "videomme_v2",
    "lvbench": "lvbench",
    "tempcompass_multi_choice": "tempcompass/videos",
    "tempcompass_yes_no": "tempcompass/videos",
    "tempcompass_caption_matching": "tempcompass/videos",
    "timelens_charades": "timelens",
}
"""Where lmms-eval looks for the videos of each task, below HF_HOME."""
RIGHT = {
    "tempcompass_yes_no": "Yes, it is.",
    "tempcompass_caption_matching": "Caption A",
    "timelens_charades": "The event happens in 1 - 3 seconds.",
}
"""An answer to the first question that the task's own rules take as right, where it is not A."""


def test_every_member_is_a_task_of_the_harness(tasks_folder: Path) -> None:
    both = TaskManager(include_path=str(tasks_folder))
    assert {"sttm_field", *MEMBERS} <= set(both.all_tasks)
    assert "tempcompass_captioning" not in MEMBERS


def test_every_layout_has_a_fixture() -> None:
    """One task stands for the subtasks of a group, which share a layout."""
    have = {path.stem for folder in (STOCK, FIELD) for path in folder.glob("*.yaml")}
    missing = [name for name in MEMBERS if not any(one == name or one.startswith(f"{name}_") for one in have)]
    assert not missing


@pytest.fixture
def small_tasks(offline: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tasks on small data, with their videos in place; HF_HOME is this folder."""
    for name in [name for name in sys.modules if name.startswith("lmms_eval.tasks.")]:
        if name.endswith(".utils"):
            monkeypatch.delitem(sys.modules, name)  # they read HF_HOME as they are imported
    importlib.invalidate_caches()
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    spec = find_spec("lmms_eval")
    assert spec is not None
    assert spec.origin is not None
    (tmp_path / "tasks").mkdir()
    for template in FIELD.glob("*.yaml"):
        text = Template(template.read_text()).substitute(lmms_eval=Path(spec.origin).parent, data=FIELD)
        (tmp_path / "tasks" / template.name).write_text(text)
    for folder in VIDEOS.values():
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name in ("clip0.mp4", "clip1.mp4"):
            (tmp_path / folder / name).touch()
    return tmp_path


def test_layouts(small_tasks: Path) -> None:
    manager = TaskManager(include_path=str(small_tasks / "tasks"), include_defaults=False)
    for name, task in get_task_dict([f"{name}_tiny" for name in VIDEOS], manager, "chat").items():
        stock = name.removesuffix("_tiny")
        docs = list(task.eval_docs)
        for doc in docs:
            (visual,) = task.doc_to_visual(doc)
            assert Path(visual).parent == small_tasks / VIDEOS[stock]
            assert Path(visual).is_file()
            (message,) = task.doc_to_messages(doc)
            assert [part["type"] for part in message["content"]] == ["video", "text"]
        results = [task.process_results(doc, [RIGHT.get(stock, "A")]) for doc in docs]
        metric = next(iter(results[0]))
        values = [result[metric] for result in results if metric in result]
        aggregate = task.aggregation()[metric]
        if "args" in signature(aggregate).parameters:
            aggregate = partial(aggregate, args=None)
        assert aggregate(values[:1]) > 0, f"{name}: the first answer is right"
        assert aggregate(values) > 0
