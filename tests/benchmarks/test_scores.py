"""Scores, each against a case computed by hand."""

import json
from types import SimpleNamespace

import pytest

from sttm_lmms.benchmarks import FORMATS, load_benchmark, scores
from sttm_lmms.benchmarks.data import video_folder
from sttm_lmms.benchmarks.documents import aggregation, documents, process_results
from sttm_lmms.benchmarks.submission import predictions


def run(data_root, benchmark, replies, limit=None):
    """The metrics of a benchmark's small file for the given replies; the right letter where a reply
    is None."""
    docs = documents(load_benchmark(benchmark, data_root), benchmark, video_folder(data_root, benchmark))[:limit]
    items = {}
    for doc, reply in zip(docs, replies, strict=True):
        for name, item in process_results(doc, [doc["answer"] if reply is None else reply]).items():
            items.setdefault(name, []).append(item)
    return {name: aggregation(name)(found) for name, found in items.items()}


def test_vnbench(data_root):
    # Three samples with four tries each, in the file try by try. Sample 1: all right; sample 2: one
    # try wrong; sample 3: one try unanswered.
    replies = [None] * 12
    replies[4] = "E"
    replies[11] = ""
    assert run(data_root, "vnbench", replies) == pytest.approx(
        {
            "accuracy": 10 / 12,
            "duration/short": 1.0,
            "duration/medium": 3 / 4,
            "duration/long": 3 / 4,
            "task_type/ret_insert1": 1.0,
            "task_type/ord_edit1": 3 / 4,
            "task_type/cnt_edit2": 3 / 4,
            "circular": 1 / 3,
            "circular/retrieval": 1.0,
            "circular/ordering": 0.0,
            "circular/counting": 0.0,
        }
    )


def test_vnbench_samples_with_missing_tries_are_left_out(data_root):
    # The first ten documents: four tries of sample 1, three of samples 2 and 3.
    result = run(data_root, "vnbench", [None] * 10, limit=10)
    assert result["accuracy"] == 1.0
    assert result["circular"] == result["circular/retrieval"] == 1.0
    assert result["circular/ordering"] is None


def test_circular_is_a_mean_over_kinds_not_over_samples():
    def sample(video, kind, right):
        return [{"video_id": video, "kind": kind, "tries": 2, "correct": value} for value in right]

    items = sample("a", "retrieval", (1.0, 1.0)) + sample("b", "retrieval", (1.0, 0.0))
    items += sample("c", "retrieval", (1.0, 1.0)) + sample("d", "counting", (0.0, 0.0))
    assert scores.circular(items) == pytest.approx((2 / 3 + 0) / 2)


def test_videomme(data_root):
    replies = ["The best answer is: C", "B. Two.", "D", "Because of this, C", None, ""]
    assert run(data_root, "videomme", replies) == pytest.approx(
        {
            "accuracy": 4 / 6,
            "duration/short": 2 / 3,
            "duration/long": 2 / 3,
            "task_type/Counting Problem": 1.0,
            "task_type/OCR Problems": 1 / 2,
            "task_type/Information Synopsis": 1 / 2,
            "domain/Knowledge": 2 / 3,
            "domain/Film & Television": 2 / 3,
            "sub_category/Geography": 2 / 3,
            "sub_category/Movie & TV Show": 2 / 3,
        }
    )


def test_longvideobench(data_root):
    assert run(data_root, "longvideobench", ["B", "A", "E"]) == pytest.approx(
        {
            "accuracy": 2 / 3,
            "duration/600": 1 / 2,
            "duration/15": 1.0,
            "task_type/TOS": 1.0,
            "task_type/S2E": 0.0,
        }
    )


def test_mlvu_has_both_means(data_root):
    # Three plotQA questions, one right; one count question, right.
    assert run(data_root, "mlvu", ["A", "A", "A", "C"]) == pytest.approx(
        {
            "accuracy": 2 / 4,
            "task_mean": (1 / 3 + 1) / 2,
            "duration/long": 2 / 4,
            "task_type/plotQA": 1 / 3,
            "task_type/count": 1.0,
        }
    )


def test_nextqa(data_root):
    assert run(data_root, "nextqa", ["E. crawl", "", "E"]) == pytest.approx(
        {
            "accuracy": 1 / 3,
            "duration/short": 1 / 2,
            "duration/medium": 0.0,
            "task_type/TN": 1.0,
            "task_type/CW": 0.0,
            "task_type/DC": 0.0,
        }
    )


def test_egoschema_with_answers_has_a_score_and_no_submission(data_root):
    assert run(data_root, "egoschema", ["C", "A"]) == {"accuracy": 0.5}


def test_egoschema_without_answers_writes_all_predictions(data_root, tmp_path):
    folder = tmp_path / "egoschema" / "annotations"
    folder.mkdir(parents=True)
    raw = json.loads((data_root / "egoschema" / "annotations" / "egoschema_fullset_v2.json").read_text())
    del raw[1]["answer"]
    (folder / "questions.json").write_text(json.dumps(raw))
    docs = documents(load_benchmark("egoschema", tmp_path), "egoschema", tmp_path)
    metrics = [process_results(doc, [reply]) for doc, reply in zip(docs, ["B", ""], strict=True)]
    assert [m["accuracy"]["score"] for m in metrics if "accuracy" in m] == [0.0]
    items = [m["submission"] for m in metrics]
    assert predictions(items) == {"0011-aa": 1, "0022-bb": -1}
    written = aggregation("submission")(items, args=SimpleNamespace(output_path=str(tmp_path)))
    assert str(tmp_path / "submissions") in written
    with open(written) as file:
        assert json.load(file) == {"0011-aa": 1, "0022-bb": -1}


@pytest.mark.parametrize("benchmark", FORMATS)
def test_failed_replies_are_wrong_and_counted(data_root, benchmark):
    count = len(load_benchmark(benchmark, data_root))
    assert run(data_root, benchmark, [""] * count)["accuracy"] == 0.0
    assert run(data_root, benchmark, [""] + [None] * (count - 1))["accuracy"] == pytest.approx(1 - 1 / count)


@pytest.mark.parametrize("benchmark", FORMATS)
def test_items_carry_cluster_and_score(data_root, benchmark):
    doc = documents(load_benchmark(benchmark, data_root), benchmark, data_root)[0]
    item = process_results(doc, ["A"])["accuracy"]
    assert item["video_id"] == doc["video_id"]
    assert item["score"] in (0.0, 1.0)


def test_nothing_has_no_mean():
    assert scores.accuracy([]) is None
