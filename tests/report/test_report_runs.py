"""Reading real result files of lmms-eval, and refusing broken ones by name."""

import json
import math
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


def write_run(folder, task, reported, lines=()):
    """A results file of a model that this package does not know, with these lines of samples."""
    content = {
        "date": "1",
        "results": {task: {"alias": task, "score,none": reported}},
        "configs": {task: {"task": task, "metric_list": [{"metric": "score"}]}},
        "config": {"model": "other", "model_args": "pretrained=a/b,budget=high"},
    }
    results = folder / "1_results.json"
    results.write_text(json.dumps(content))
    if lines:
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        (folder / f"1_samples_{task}.jsonl").write_text("\n".join(texts) + "\n")
    return results


def edit_lines(file, change):
    records = [json.loads(line) for line in file.read_text().splitlines()]
    change(records)
    file.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_the_totals_of_a_run_are_those_its_first_answer_states(copied):
    results, samples = copied
    assert load_run(results).summary.videos_decoded == 0
    edit_lines(samples, lambda lines: lines[0]["token_counts"][0].update(run={"questions": 48, "videos_decoded": 12}))
    found = load_run(results).summary
    assert (found.questions, found.videos_decoded) == (48, 12)


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
    assert set(task.samples["video"]) == {f"v{n}" for n in range(6)}
    first, second = task.samples.iloc[0], task.samples.iloc[1]
    assert (first.visual_tokens, first.kept_tokens, first.reduced, first.ttft) == (784, 392, True, 0.4)
    assert math.isnan(second.ttft), "a question that reused the prefix has no prefill time"
    assert task.samples["score"].mean() == pytest.approx(task.reported)


def test_doc_hash_is_no_identity(recorded):
    """Why runs are paired by document number, prompt and target: lmms-eval hashes every document to
    the same value."""
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
    assert all(task.samples["reduced"].isna().all() for task in run.tasks)


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
    assert task.samples["score"].sum() == 6
    assert set(task.samples["video"]) == {f"v{n}" for n in range(6)}, "taken from the token counts"


@pytest.mark.parametrize(
    ("task", "reported", "share"),
    [
        ("vnbench", 0.5, 0.5),
        ("vnbench", 66.5, None),
        ("videomme", 66.5, 0.665),
        ("videomme", 0.9, 0.009),
        ("nextqa_mc_test", 0.5, 0.5),
        ("coco_cap", 0.98, None),
        ("coco_cap", 1.19, None),
        ("video_dc499", 2.8, None),
    ],
)
def test_units_are_known_or_left_as_they_are(tmp_path, task, reported, share):
    (found,) = load_run(write_run(tmp_path, task, reported)).tasks
    assert found.reported == reported
    assert found.reported_share == pytest.approx(share)


@pytest.mark.parametrize("unit", [1, 100])
def test_samples_tell_the_unit_of_any_task(tmp_path, unit):
    lines = [{"doc_id": n, "target": "x", "input": "q", "score": float(n < 3)} for n in range(4)]
    (found,) = load_run(write_run(tmp_path, "other", 0.75 * unit, lines)).tasks
    assert (found.unit, found.reported_share) == (unit, 0.75)


OTHERS = {
    "captions": [{"score": {"answer": ["a"], "pred": "b", "video": f"v{n}"}} for n in (0, 1)],
    "zero_to_five": [{"score": {"score": 3}}, {"score": {"score": 2.6}}],
    "nan": [{"score": float("nan")}, {"score": float("nan")}],
    "broken": [{"score": 1}, "not JSON"],
    "predict_only": [{"bypass": None}, {"bypass": None}],
}


@pytest.mark.parametrize("case", OTHERS)
def test_what_is_no_share_of_right_answers_is_kept_as_reported(tmp_path, case):
    lines = [one if one == "not JSON" else {"doc_id": n, "target": "x", **one} for n, one in enumerate(OTHERS[case])]
    (run,) = load_runs([write_run(tmp_path, "other", 2.8, lines).parent])
    (task,) = run.tasks
    assert (task.reported, task.unit, len(task.answered)) == (2.8, None, 0)
    assert bool(task.problem) == (case in ("zero_to_five", "broken"))


def test_of_several_filters_the_reported_one_counts(tmp_path):
    scores = [(0, 0.0), (0, 1.0), (1, 0.0), (1, 1.0), (2, 0.0), (2, 0.0)]
    lines = [{"doc_id": n, "target": "x", "score": score} for n, score in scores]
    (task,) = load_run(write_run(tmp_path, "other", 2 / 3, lines)).tasks
    assert task.samples["score"].tolist() == [1, 1, 0]


def test_ends_of_lines_within_a_reply_and_a_byte_order_mark(copied):
    results, samples = copied
    records = [json.loads(line) for line in samples.read_text().splitlines()]
    records[0]["filtered_resps"] = "A\u2028or\x85B\x0c"
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    samples.write_text(text, encoding="utf-8-sig", newline="\n")
    assert len(load_run(results).tasks[1].samples) == 24


def test_a_file_that_cannot_be_read_ends_nothing(copied):
    results, samples = copied
    other = results.with_name("20261231_000000_results.json")
    other.write_text("{")
    samples.write_text(samples.read_text()[:-20])
    broken, good = sorted(load_runs([results.parent]), key=lambda run: not run.problem)
    assert "cannot be read as JSON" in broken.problem
    assert [bool(task.problem) for task in good.tasks] == [False, True]
    assert good.tasks[1].reported == pytest.approx(2 / 3)
    with pytest.raises(ResultError, match="cannot be read as JSON"):
        load_runs([other])


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
    task = load_run(results).tasks[1]
    assert task.samples is None
    assert task.problem.startswith(str(samples))
    assert message in task.problem


def test_cut_off_samples(copied):
    results, samples = copied
    samples.write_text(samples.read_text()[:-20])
    assert "line 24: not JSON" in load_run(results).tasks[1].problem


def test_ranks_that_agree(copied):
    results, samples = copied
    edit_lines(samples, lambda r: r[3]["token_counts"][0].update(provenance=r[0]["token_counts"][0]["provenance"]))
    assert load_run(results).tasks[1].provenance.method == "sttm"
