"""lmms-eval's evaluator over all our tasks, with a model that knows its replies."""

import json
import os
from pathlib import Path

import pytest

pytest.importorskip("lmms_eval")

from lmms_eval.api.model import lmms
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager
from warm_ranks import warm_command

from sttm_lmms.benchmarks import FORMATS


class Scripted(lmms):
    """Replies the right letter in a sentence, except to every third question of a task, which
    fails."""

    is_simple = False

    def generate_until(self, requests):
        replies = []
        for request in requests:
            _, doc_to_messages, _, doc_id, task, split = request.args
            doc = self.task_dict[task][split][doc_id]
            assert doc_to_messages(doc)[0]["content"][0]["type"] == "video"
            replies.append("" if doc_id % 3 == 2 else f"Best answer: {doc['answer']}")
        return replies

    def loglikelihood(self, requests):
        raise NotImplementedError

    def generate_until_multi_round(self, requests):
        raise NotImplementedError


@pytest.fixture
def result(small_data, tasks_folder):
    manager = TaskManager(include_path=str(tasks_folder), include_defaults=False)
    return simple_evaluate(Scripted(), tasks=["sttm_suite"], task_manager=manager, bootstrap_iters=0)


def test_scores_reach_the_result(result):
    scores = result["results"]
    assert scores["sttm_nextqa"]["accuracy,none"] == pytest.approx(2 / 3)
    assert scores["sttm_vnbench"]["accuracy,none"] == pytest.approx(8 / 12)
    # In the order of the file, every third question is about the same sample: all of its tries are
    # lost.
    assert scores["sttm_vnbench"]["circular,none"] == pytest.approx(2 / 3)
    assert {"circular/retrieval,none", "circular/ordering,none", "circular/counting,none"} <= set(
        scores["sttm_vnbench"]
    )
    assert scores["sttm_mlvu"]["task_mean,none"] == pytest.approx((2 / 3 + 1) / 2)
    assert scores["sttm_longvideobench"]["duration/600,none"] == 1.0
    assert scores["sttm_videomme"]["domain/Film & Television,none"] == pytest.approx(2 / 3)
    assert scores["sttm_videomme"]["sub_category/Geography,none"] == pytest.approx(2 / 3)
    assert scores["sttm_egoschema"] == {**scores["sttm_egoschema"], "accuracy,none": 1.0}


def test_suite_is_the_mean_of_the_six(result):
    six = [result["results"][f"sttm_{name}"]["accuracy,none"] for name in FORMATS]
    assert result["groups"]["sttm_suite"]["accuracy,none"] == pytest.approx(sum(six) / 6)
    assert {key for key in result["groups"]["sttm_suite"] if not key.startswith("accuracy")} <= {"alias", " "}


def test_standard_errors_are_clustered_by_video(result):
    videomme = result["results"]["sttm_videomme"]
    assert videomme["accuracy_stderr_clustered,none"] > 0
    assert videomme["accuracy_stderr_clustered,none"] != pytest.approx(videomme["accuracy_stderr_clt,none"])
    assert result["results"]["sttm_vnbench"]["circular_stderr_clt,none"] == "N/A"


def test_samples_say_what_was_read(result):
    samples = result["samples"]["sttm_nextqa"]
    assert [s["accuracy"]["score"] for s in samples] == [1.0, 1.0, 0.0]
    assert [s["accuracy"]["prediction"] for s in samples] == ["E", "A", ""]
    assert [s["accuracy"]["video_id"] for s in samples] == ["100", "200", "100"]


@pytest.mark.slow
def test_command_line(small_data, tasks_folder, tmp_path):
    command = ["--model", "dummy", "--tasks", "sttm_suite", "--include_path", str(tasks_folder)]
    log = tmp_path / "log.txt"
    warm_command([*command, "--output_path", str(tmp_path), "--log_samples"], os.environ, log)
    files = list(Path(tmp_path).rglob("*_results.json"))
    assert len(files) == 1, log.read_text()
    results = json.loads(files[0].read_text())["results"]
    assert {f"sttm_{name}" for name in FORMATS} < set(results)
    assert 0 <= results["sttm_vnbench"]["circular,none"] <= results["sttm_vnbench"]["accuracy,none"]
    assert len(list(Path(tmp_path).rglob("*_samples_sttm_*.jsonl"))) == 6
