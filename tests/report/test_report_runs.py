"""Reading real result files of lmms-eval, and refusing broken ones by name."""

import json
import shutil

import pytest

from sttm_lmms.errors import ResultError
from sttm_lmms.report.runs import RESULTS, load_run, load_runs


@pytest.fixture
def copied(recorded, tmp_path):
    """A private copy of one run: (results file, samples file of vnbench)."""
    shutil.copytree(recorded / "sttm-50", tmp_path / "run")
    results = next((tmp_path / "run").rglob(f"*{RESULTS}"))
    return results, results.with_name(results.name.replace(RESULTS, "_samples_vnbench.jsonl"))


def edit_lines(file, change):
    records = [json.loads(line) for line in file.read_text().splitlines()]
    change(records)
    file.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_reads_what_lmms_eval_wrote(recorded):
    (run,) = load_runs([recorded / "sttm-50"])
    assert run.model_args == {"pretrained": "tiny/llava-video", "budget": "0.5"}
    assert run.summary.reduction_asked == 1
    assert run.summary.requested_budget == 0.5
    assert run.summary.questions == 48
    assert [task.task for task in run.tasks] == ["sttm_videomme", "vnbench"]
    task = run.tasks[1]
    assert task.provenance.method == "sttm"
    assert task.provenance.settings["budget"] == 0.5
    assert task.provenance.frames == 128
    assert len(task.samples) == 24
    assert {sample.video for sample in task.samples} == {f"v{n}" for n in range(6)}
    first, second = task.samples[:2]
    assert (first.visual_tokens, first.kept_tokens, first.reduced, first.ttft) == (784, 392, True, 0.4)
    assert second.ttft is None, "a question that reused the prefix has no prefill time"
    assert sum(s.score for s in task.samples) / 24 == pytest.approx(task.reported)


def test_doc_hash_is_no_identity(recorded):
    """Why runs are paired by document number, prompt and target: lmms-eval hashes every document to the same value."""
    file = next((recorded / "full").rglob("*_samples_vnbench.jsonl"))
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert len({record["doc_hash"] for record in records}) == 1
    assert len({record["input"] for record in records}) == len(records)


def test_finds_every_run_below_a_folder_once(recorded):
    runs = load_runs([recorded, recorded / "full"])
    assert len(runs) == 6
    assert [run.path for run in runs] == sorted(run.path for run in runs)


def test_a_run_of_another_model_has_no_provenance(recorded):
    (run,) = load_runs([recorded / "foreign"])
    assert run.model == "dummy"
    assert all(task.provenance is None for task in run.tasks)
    assert all(sample.reduced is None for task in run.tasks for sample in task.samples)


def test_without_samples_the_reported_numbers_remain(copied):
    results, samples = copied
    samples.unlink()
    task = next(task for task in load_run(results).tasks if task.task == "vnbench")
    assert task.samples is None
    assert task.reported == pytest.approx(2 / 3)
    assert task.reported_error == pytest.approx(0.0982946, abs=1e-6)
    assert task.questions == 24


def test_own_tasks_of_lmms_eval_log_reply_and_truth_instead_of_a_score(copied):
    results, samples = copied

    def as_mlvu(records):
        for n, record in enumerate(records):
            record["accuracy"] = {"pred_answer": "a", "answer": "A" if n % 4 == 0 else "B"}

    edit_lines(samples, as_mlvu)
    task = next(task for task in load_run(results).tasks if task.task == "vnbench")
    assert sum(sample.score for sample in task.samples) == 6
    assert {sample.video for sample in task.samples} == {f"v{n}" for n in range(6)}, "taken from the token counts"


def test_percent_becomes_a_fraction(copied):
    results, samples = copied
    samples.unlink()
    results.write_text(results.read_text().replace("0.6666666666666666", "66.5"))
    task = next(task for task in load_run(results).tasks if task.task == "vnbench")
    assert task.reported == pytest.approx(0.665)


def test_empty_folder(tmp_path):
    with pytest.raises(ResultError, match=f"{tmp_path}: no .*_results.json in it"):
        load_runs([tmp_path])


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "cannot be read as JSON"), ("[]", "holds a list"), ('{"results": {}}', "has no 'configs' object")],
)
def test_broken_results_file(copied, text, message):
    results, _ = copied
    results.write_text(text)
    with pytest.raises(ResultError, match=message) as error:
        load_run(results)
    assert str(results) in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda records: records[3].pop("target"), "line 4: no 'target'"),
        (lambda records: [record.pop("accuracy") for record in records], "no line has a score of 'accuracy'"),
        (lambda records: records[3]["accuracy"].update(score=7), "line 4: score 7 is not in"),
        (lambda records: records[3].update(doc_id=0), "doc_id 0 occurs twice"),
        (
            lambda records: records[3]["token_counts"][0].update(provenance={"method": "none"}),
            "its ranks disagree on how the model ran",
        ),
    ],
)
def test_broken_samples(copied, change, message):
    results, samples = copied
    edit_lines(samples, change)
    with pytest.raises(ResultError, match=message) as error:
        load_run(results)
    assert str(samples) in str(error.value)


def test_cut_off_samples(copied):
    results, samples = copied
    samples.write_text(samples.read_text()[:-20])
    with pytest.raises(ResultError, match="line 24: not JSON"):
        load_run(results)


def test_ranks_that_agree(copied):
    results, samples = copied
    edit_lines(samples, lambda r: r[3]["token_counts"][0].update(provenance=r[0]["token_counts"][0]["provenance"]))
    assert load_run(results).tasks[1].provenance.method == "sttm"
