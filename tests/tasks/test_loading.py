"""Our tasks and lmms-eval's own load offline, through `--include_path` alone."""

import json
from pathlib import Path

import pytest

pytest.importorskip("lmms_eval")

from lmms_eval.protocol import ChatMessages
from lmms_eval.tasks import TaskManager, get_task_dict

from sttm_lmms.benchmarks import FORMATS, load_benchmark
from sttm_lmms.benchmarks.documents import TaskData
from sttm_lmms.errors import AnnotationError

OURS = ["vnbench", *(f"sttm_{name}" for name in FORMATS), "sttm_longvideobench_mended"]


@pytest.fixture
def manager(tasks_folder):
    return TaskManager(include_path=str(tasks_folder), include_defaults=False)


def test_names(manager):
    assert sorted(manager.all_subtasks) == sorted(OURS)
    assert sorted(manager.all_groups) == ["sttm_field", "sttm_suite"]


def test_names_are_not_lmms_evals_own(manager):
    taken = set(TaskManager().all_tasks)
    assert taken.isdisjoint(manager.all_tasks)
    assert "videomme" in taken


@pytest.mark.parametrize("kind", ["chat", "simple"])
@pytest.mark.parametrize("name", OURS)
def test_task_loads(small_data, manager, name, kind):
    benchmark = name.removeprefix("sttm_").removesuffix("_mended")
    task = get_task_dict([name], manager, kind)[name]
    questions = load_benchmark(benchmark, small_data)
    assert len(task.eval_docs) == len(questions)
    assert task.config.cluster_key in task.eval_docs.features
    for doc in task.eval_docs:
        path = task.doc_to_visual(doc)[0]
        assert Path(path) == small_data / benchmark / "videos" / f"{doc['video_id']}.mp4"
        text = task.doc_to_text(doc)
        assert text.endswith("\nThe best answer is:")
        last = len(doc["options"]) if name == "sttm_longvideobench" else len(doc["options"]) - 1
        assert f"or {'ABCDEF'[last]}) of the correct option" in text
        assert task.doc_to_target(doc) == doc["answer"]
        if kind == "chat":
            messages = ChatMessages(messages=task.doc_to_messages(doc))
            assert messages.extract_media() == ([], [path], [])
            assert [part["type"] for part in task.doc_to_messages(doc)[0]["content"]] == ["video", "text"]
            assert task.doc_to_messages(doc)[0]["content"][1]["text"] == text


@pytest.mark.parametrize("name", OURS)
def test_metrics_are_those_that_occur(small_data, manager, name):
    task = get_task_dict([name], manager, "chat")[name]
    found = {metric for doc in task.eval_docs for metric in task.process_results(doc, ["A"])}
    assert found == set(task.aggregation()) == set(task.higher_is_better())
    assert "accuracy" in found


def test_generation_is_that_of_the_published_runs(small_data, manager):
    settings = get_task_dict(["sttm_mlvu"], manager, "chat")["sttm_mlvu"].config.generation_kwargs
    assert (settings["max_new_tokens"], settings["do_sample"], settings["until"]) == (32, False, [])


def test_suite(small_data, manager):
    ((group, members),) = get_task_dict(["sttm_suite"], manager, "chat").items()
    assert group.group_name == "sttm_suite"
    assert sorted(members) == sorted(f"sttm_{name}" for name in FORMATS)


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_order_is_that_of_the_file_for_any_number_of_processes(small_data, manager, monkeypatch, world_size):
    """So --limit and doc_id mean the same."""
    monkeypatch.setenv("WORLD_SIZE", str(world_size))
    task = get_task_dict(["sttm_nextqa"], manager, "chat")["sttm_nextqa"]
    assert [doc["video_id"] for _, doc in task.doc_iterator()] == ["100", "200", "100"]


def test_missing_annotations_say_what_to_do(offline, manager, monkeypatch, tmp_path):
    monkeypatch.setenv("STTM_DATA_ROOT", str(tmp_path))
    with pytest.raises(AnnotationError, match="STTM_DATA_ROOT") as error:
        get_task_dict(["vnbench"], manager, "chat")
    assert str(tmp_path / "vnbench/annotations/VNBench-main-4try_v2.json") in str(error.value)


def test_egoschema_with_some_answers(small_data, manager, monkeypatch, tmp_path):
    records = json.loads((small_data / "egoschema/annotations/egoschema_fullset_v2.json").read_text())
    del records[1]["answer"]
    (tmp_path / "egoschema/annotations").mkdir(parents=True)
    (tmp_path / "egoschema/annotations/questions.json").write_text(json.dumps(records))
    monkeypatch.setenv("STTM_DATA_ROOT", str(tmp_path))
    task = get_task_dict(["sttm_egoschema"], manager, "chat")["sttm_egoschema"]
    assert sorted(task.aggregation()) == ["accuracy", "submission"]
    assert [set(task.process_results(doc, ["A"])) for doc in task.eval_docs] == [
        {"accuracy", "submission"},
        {"submission"},
    ]


def test_result_files_hold_a_digest_of_the_questions(small_data):
    mlvu, nextqa = (repr(TaskData.load(name)) for name in ("mlvu", "nextqa"))
    assert mlvu.startswith("TaskData(MLVU_mcq_v2.json, 4 questions, ")
    assert len(mlvu) < 80
    assert mlvu == repr(TaskData.load("mlvu"))
    assert mlvu.split(", ")[-1] != nextqa.split(", ")[-1]


def test_default_data_root_is_below_the_current_folder(small_data, manager, monkeypatch, tmp_path):
    monkeypatch.delenv("STTM_DATA_ROOT")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "datasets").symlink_to(small_data)
    task = get_task_dict(["sttm_mlvu"], manager, "chat")["sttm_mlvu"]
    assert task.doc_to_visual(task.eval_docs[0])[0].startswith(str(tmp_path / "datasets" / "mlvu" / "videos"))


def test_stock_tasks_load_on_small_data(offline, stock_tasks, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(stock_tasks.hf_home))
    manager = TaskManager(include_path=str(stock_tasks.include_path), include_defaults=False)
    for folder in stock_tasks.videos.values():
        for name in ("clip0.mp4", "clip1.mp4"):
            (folder / name).touch()
    for name, task in get_task_dict(list(stock_tasks.names), manager, "chat").items():
        for doc in task.eval_docs:
            (visual,) = task.doc_to_visual(doc)
            assert Path(visual).parent == stock_tasks.videos[name]
            assert Path(visual).is_file()
            (message,) = task.doc_to_messages(doc)
            assert [part["type"] for part in message["content"]] == ["video", "text"]
            assert task.process_results(doc, ["A"])
