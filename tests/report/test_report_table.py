"""Every number of the table recomputed from the raw files, and every flag."""

import json
import shutil
from statistics import fmean

import pytest

from sttm_lmms.provenance import HEADLINE, METRIC_PREFIX
from sttm_lmms.report.paper import paper_rows
from sttm_lmms.report.render import render
from sttm_lmms.report.runs import RESULTS, load_runs
from sttm_lmms.report.stats import clustered_interval, mcnemar_exact
from sttm_lmms.report.table import COLUMNS, benchmark_of, build_table

pytest.importorskip("pandas")


@pytest.fixture(scope="module")
def table(recorded):
    return build_table(load_runs([recorded]))


def row(table, setting, benchmark="VNBench"):
    found = table[(table["setting"] == setting) & (table["benchmark"] == benchmark)]
    assert len(found) == 1
    return found.iloc[0]


def raw(recorded, run, task):
    file = next((recorded / run).rglob(f"*_samples_{task}.jsonl"))
    return {record["doc_id"]: record for record in map(json.loads, file.read_text().splitlines())}


@pytest.mark.parametrize(("task", "benchmark"), [("vnbench", "VNBench"), ("sttm_videomme", "VideoMME")])
def test_numbers_against_the_raw_files(table, recorded, task, benchmark):
    ours, full = raw(recorded, "sttm-30", task), raw(recorded, "full", task)
    kept = [d for d in ours if "error" not in ours[d]["token_counts"][0]]
    assert len(kept) == 20, "the four questions on the unreadable video are left out"
    mine, theirs = ([run[d]["accuracy"]["score"] for d in kept] for run in (ours, full))
    lost = sum(a < b for a, b in zip(mine, theirs, strict=True))
    won = sum(a > b for a, b in zip(mine, theirs, strict=True))
    shares = [c["kept_tokens"] / c["visual_tokens"] for c in (ours[d]["token_counts"][0] for d in kept)]
    low, high = clustered_interval(mine, [ours[d]["accuracy"]["videoID"] for d in kept])

    shown = row(table, "budget 0.3", benchmark)
    assert shown["accuracy"] == pytest.approx(fmean(mine))
    assert (shown["low"], shown["high"]) == pytest.approx((low, high))
    assert shown["interval"] == "video"
    assert shown["relative"] == pytest.approx(fmean(mine) / fmean(theirs))
    assert (shown["lost"], shown["won"]) == (lost, won)
    assert shown["mcnemar_p"] == pytest.approx(mcnemar_exact(lost, won))
    assert shown["kept_requested"] == 0.3
    assert (shown["kept_mean"], shown["kept_min"], shown["kept_max"]) == pytest.approx(
        (fmean(shares), min(shares), max(shares))
    )
    assert shown["ttft_s"] == pytest.approx(0.25), "reused prefixes do not count"
    assert shown["speed_up"] == pytest.approx(0.8 / 0.25)
    reported = sum(record["accuracy"]["score"] for record in ours.values()) / 24
    assert shown["also"] == f"accuracy as reported {100 * reported:.1f}", "lmms-eval counts them as wrong"
    assert (shown["questions"], shown["videos"], shown["failed_videos"]) == (20, 5, 1)
    assert shown["flags"] == "1 unreadable video(s), left out of the accuracy"
    assert shown["comparable"]


def test_a_run_that_reduced_nothing_is_flagged(table):
    shown = row(table, "budget 0.2")
    assert "a reduction was asked for and nothing was reduced" in shown["flags"]
    assert not shown["comparable"]


def test_other_frames_are_flagged_and_give_no_speed_up(table):
    shown = row(table, "budget 0.4, max_frames=256")
    assert shown["flags"] == "frame limit 256 (baseline 128)"
    assert not shown["comparable"]
    assert shown["speed_up"] != shown["speed_up"]  # NaN


def test_a_run_without_provenance_is_flagged(table):
    shown = table[table["model"] == "dummy"]
    assert len(shown) == 2
    assert all("no certificate: the run does not say what it reduced" in flags for flags in shown["flags"])
    assert all("no baseline" in flags for flags in shown["flags"])
    assert not shown["comparable"].any()


def test_the_baseline_is_its_own(table):
    shown = row(table, "newline=no_token")
    assert (shown["relative"], shown["speed_up"], shown["flags"]) == (1.0, 1.0, "")


def test_the_order_is_the_readers(table):
    own = table[table["model"] == "tiny/llava-video"]
    assert list(dict.fromkeys(own["method"])) == ["none", "sttm"]
    assert list(own["benchmark"])[:2] == ["VNBench", "VideoMME"]
    assert list(table.columns) == list(COLUMNS)


@pytest.fixture
def edited(recorded, tmp_path):
    """Baseline and sttm-50 in a private folder, with a function that edits all samples of one run
    and task."""
    for name in ("full", "sttm-50"):
        shutil.copytree(recorded / name, tmp_path / name)

    def edit(run, change, task="vnbench"):
        file = next((tmp_path / run).rglob(f"*_samples_{task}.jsonl"))
        records = [json.loads(line) for line in file.read_text().splitlines()]
        for record in records:
            change(record)
        file.write_text("".join(json.dumps(record) + "\n" for record in records))

    return tmp_path, edit


def test_unknown_answers_are_left_out(edited):
    folder, edit = edited
    edit("sttm-50", lambda record: record["accuracy"].pop("score") if record["doc_id"] % 2 else None)
    shown = row(build_table(load_runs([folder])), "budget 0.5")
    assert shown["questions"] == 12
    assert "12 question(s) without a known answer" in shown["flags"]


def test_runs_pair_by_question_id_whatever_the_order(edited):
    """Our tasks order documents by the number of processes: the same question may have another
    doc_id."""
    folder, edit = edited

    def identify(record):
        record["accuracy"]["question_id"] = f"q{record['doc_id']}"

    for run in ("full", "sttm-50"):
        edit(run, identify)
    before = row(build_table(load_runs([folder])), "budget 0.5")
    edit("sttm-50", lambda record: record.update(doc_id=23 - record["doc_id"]))
    after = row(build_table(load_runs([folder])), "budget 0.5")
    assert after["flags"] == ""
    columns = ["relative", "lost", "won", "mcnemar_p"]
    assert after[columns].tolist() == before[columns].tolist()


def test_ids_that_are_not_unique_do_not_pair(edited):
    folder, edit = edited
    for run in ("full", "sttm-50"):
        edit(run, lambda record: record["accuracy"].update(question_id="the same"))
    shown = row(build_table(load_runs([folder])), "budget 0.5")
    assert (shown["lost"], shown["won"]) == (2, 2), "paired by position"


def test_another_prompt_is_not_compared(edited):
    folder, edit = edited
    edit("sttm-50", lambda record: record.update(input="Answer briefly. " + record["input"]))
    shown = row(build_table(load_runs([folder])), "budget 0.5")
    assert "prompt or answer key differs from the baseline's on 24 questions" in shown["flags"]
    assert "no question in common" in shown["flags"]
    assert shown["relative"] != shown["relative"]
    assert not shown["comparable"]


@pytest.mark.parametrize(
    ("field", "value", "flag", "timed"),
    [
        ("attention", "eager", "attention backend eager (baseline sdpa)", False),
        ("video_backend", "pyav", "video backend pyav (baseline decord)", True),
        ("newline", "grid", "newline mode grid (baseline no_token)", True),
        ("device", "cpu", "device cpu (baseline H200)", False),
    ],
)
def test_what_differs_is_named(edited, field, value, flag, timed):
    folder, edit = edited
    base = {"attention": "sdpa", "device": "H200"}

    def states(**values):
        def change(record):
            record["token_counts"][0].get("provenance", {}).update(values)

        return change

    edit("full", states(**base))
    edit("sttm-50", states(**{**base, field: value}))
    shown = row(build_table(load_runs([folder])), "budget 0.5")
    assert flag in shown["flags"].split("; ")
    assert bool(shown["speed_up"] == shown["speed_up"]) is timed  # NaN differs from itself
    assert shown["comparable"] == (field in ("newline", "device"))


def test_missing_samples_are_marked_as_reported(edited):
    folder, _ = edited
    next((folder / "sttm-50").rglob("*_samples_vnbench.jsonl")).unlink()
    shown = row(build_table(load_runs([folder])), "budget 0.5")
    assert shown["interval"] == "reported"
    assert shown["accuracy"] == pytest.approx(2 / 3)
    assert "samples were not logged" in shown["flags"]
    assert shown["mcnemar_p"] != shown["mcnemar_p"]
    assert shown["kept_mean"] == pytest.approx(0.5), "from the run's totals"


def test_the_newest_of_equal_runs_is_shown(edited):
    folder, edit = edited
    copy = shutil.copytree(folder / "sttm-50", folder / "again")
    for file in copy.rglob("*"):
        if file.is_file():
            file.rename(file.with_name("20991231_235959" + file.name[15:]))
    results = next(copy.rglob(f"*{RESULTS}"))
    content = json.loads(results.read_text())
    results.write_text(json.dumps({**content, "date": "20991231_235959"}))
    edit("again", lambda record: record["accuracy"].update(score=1.0))
    shown = row(build_table(load_runs([folder])), "budget 0.5")
    assert shown["accuracy"] == 1.0
    assert "1 older run(s) of this setting left out" in shown["flags"]


def change_results(folder, run, change):
    results = next((folder / run).rglob(f"*{RESULTS}"))
    content = json.loads(results.read_text())
    change(content)
    results.write_text(json.dumps(content))


def test_another_way_to_generate_is_another_setting(edited):
    """Sampled and cut replies are no repetition of a greedy run, and not compared with one in
    silence."""
    folder, _ = edited
    shutil.copytree(folder / "sttm-50", folder / "sampled")

    def sampled(content):
        content["config"]["gen_kwargs"] = {"temperature": 5.0, "max_new_tokens": 1}
        for config in content["configs"].values():
            config["generation_kwargs"] |= {"temperature": 5.0, "max_new_tokens": 1}

    change_results(folder, "sampled", sampled)
    table = build_table(load_runs([folder]))
    assert row(table, "budget 0.5")["flags"] == ""
    shown = row(table, "budget 0.5, max_new_tokens=1, temperature=5.0")
    assert shown["flags"] == "max_new_tokens 1 (baseline 8); temperature 5.0 (baseline not set)"
    assert not shown["comparable"]


@pytest.mark.parametrize("key", ["system_instruction", "num_fewshot"])
def test_whatever_else_decides_the_answers_is_part_of_a_setting(edited, key):
    folder, _ = edited
    change_results(folder, "sttm-50", lambda content: content["config"]["resolved_cli_args"].update({key: 3}))
    shown = row(build_table(load_runs([folder])), f"budget 0.5, {key}=3")
    assert (shown["flags"], shown["comparable"]) == (f"{key} 3 (baseline not set)", False)


def test_folders_of_one_name_are_two_models(edited):
    folder, _ = edited

    def elsewhere(content):
        content["config"]["model_args"] = "pretrained=runs/b/tiny,budget=0.5"

    change_results(folder, "sttm-50", elsewhere)
    change_results(folder, "full", lambda content: content["config"].update(model_args="pretrained=/runs/a/tiny"))
    table = build_table(load_runs([folder]))
    assert set(table["model"]) == {"a/tiny", "b/tiny"}
    assert "no baseline" in row(table, "budget 0.5")["flags"]


def test_a_preset_file_that_was_edited_is_another_setting(edited):
    folder, edit = edited
    change_results(
        folder, "sttm-50", lambda content: content["config"].update(model_args="pretrained=m,preset=my.yaml")
    )
    shutil.copytree(folder / "sttm-50", folder / "later")
    for task in ("vnbench", "sttm_videomme"):
        edit(
            "later",
            lambda record: record["token_counts"][0].get("provenance", {}).update(settings={"root_level": 3}),
            task,
        )
    table = build_table(load_runs([folder]))
    settings = set(table[table["method"] == "sttm"]["setting"])
    assert len(settings) == 2
    assert "my.yaml, root_level=3" in settings
    assert not table["flags"].str.contains("older").any()


def test_answers_from_a_cache_pair_and_are_no_part_of_the_costs(edited):
    """What a resumed run did not ask again may have neither tokens nor a video in its record."""
    folder, edit = edited
    for run in ("full", "sttm-50"):
        edit(run, lambda record: record["accuracy"].update(question_id=f"q{record['doc_id']}"))
    before = row(build_table(load_runs([folder])), "budget 0.5")

    def cached(record):
        record["accuracy"].pop("videoID")
        if record["doc_id"] >= 4:
            record["token_counts"] = [None]
        else:
            record["token_counts"][0]["kept_tokens"] = 784

    edit("sttm-50", cached)
    after = row(build_table(load_runs([folder])), "budget 0.5")
    assert after["flags"] == "kept tokens and times over 4 of 24 questions: the others came from a cache"
    assert (after["lost"], after["won"], after["relative"]) == (before["lost"], before["won"], before["relative"])
    assert (after["kept_mean"], after["questions"]) == (1.0, 24)


def test_totals_of_a_resumed_run_without_samples_say_what_they_are_of(edited):
    folder, _ = edited
    for file in (folder / "sttm-50").rglob("*.jsonl"):
        file.unlink()
    change_results(folder, "sttm-50", lambda content: content["throughput"].update(avg_questions=8))
    assert (
        "kept tokens and times over 8 of 48 questions" in row(build_table(load_runs([folder])), "budget 0.5")["flags"]
    )


def test_the_printed_numbers_alone_are_a_certificate(edited):
    folder, _ = edited
    for file in (folder / "sttm-50").rglob("*.jsonl"):
        file.unlink()

    def printed(content):
        kept = {METRIC_PREFIX + name for name in HEADLINE}
        content["throughput"] = {name: value for name, value in content["throughput"].items() if name in kept}

    change_results(folder, "sttm-50", printed)
    shown = row(build_table(load_runs([folder])), "budget 0.5")
    assert "certificate" not in shown["flags"]
    assert shown["kept_mean"] == pytest.approx(0.5)


def test_a_task_of_options_counts_a_missing_video_once(edited):
    """Where options are scored, each has a record of its own; the video may be missing in any of
    them."""
    folder, edit = edited

    def scored(record):
        record["token_counts"] *= 4
        if record["doc_id"] < 6:
            record["token_counts"][3] = {**record["token_counts"][3], "error": "gone"}

    edit("sttm-50", scored)
    assert row(build_table(load_runs([folder])), "budget 0.5")["questions"] == 18


def test_a_broken_file_is_named_below_the_table(edited):
    folder, _ = edited
    (folder / "1_results.json").write_text("{")
    text = render(build_table(load_runs([folder])), "md")
    assert f"1. left out: {folder / '1_results.json'}: cannot be read as JSON" in text
    assert "| tiny/llava-video | sttm | budget 0.5 |" in text


def test_further_scores_are_shown_but_not_breakdowns(edited):
    folder, _ = edited
    results = next((folder / "sttm-50").rglob(f"*{RESULTS}"))
    content = json.loads(results.read_text())
    more = {"circular,none": 0.25, "circular_stderr,none": 0.1, "circular/counting,none": 0.5, "duration/short,none": 1}
    content["results"]["vnbench"].update(more)
    results.write_text(json.dumps(content))
    shown = row(build_table(load_runs([folder])), "budget 0.5")
    assert shown["also"] == "circular 25.0"
    assert shown["accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(("preset", "share"), [("paper-30", 0.3), ("paper-50:7b", 0.5), ("mine", None)])
def test_the_share_in_a_presets_name_is_what_was_asked_for(edited, preset, share):
    folder, edit = edited
    results = next((folder / "sttm-50").rglob(f"*{RESULTS}"))
    text = results.read_text().replace('llava-video,budget=0.5"', f'llava-video,preset={preset}"')
    results.write_text(text.replace('"avg_requested_budget": 0.5,', ""))

    def thresholds(record):
        record["token_counts"][0].get("provenance", {}).update(settings={"spatial_threshold": 0.8})

    for task in ("vnbench", "sttm_videomme"):
        edit("sttm-50", thresholds, task)
    table = build_table(load_runs([folder]))
    shown = row(table, preset)
    assert shown["kept_requested"] == share or (share is None and shown["kept_requested"] != shown["kept_requested"])


def test_a_partial_run_is_flagged(edited):
    folder, _ = edited
    results = next((folder / "sttm-50").rglob(f"*{RESULTS}"))
    results.write_text(results.read_text().replace('"limit": null', '"limit": 24.0'))
    assert "only a part of the data (limit 24)" in row(build_table(load_runs([folder])), "budget 0.5")["flags"]


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("vnbench", "VNBench"),
        ("sttm_vnbench", "VNBench"),
        ("sttm_nextqa", "NExT-QA"),
        ("videomme", "VideoMME (videomme)"),
        ("mlvu_dev", "MLVU (mlvu_dev)"),
        ("longvideobench_val_v", "LongVideoBench (longvideobench_val_v)"),
        ("sttm_mini", "mini"),
    ],
)
def test_lmms_evals_own_tasks_get_their_own_column(task, name):
    assert benchmark_of(task) == name


# What the paper says about itself: mean ratios of accuracy and TTFT, in models.
SUMMARY = [
    ("LLaVA-Video-7B", 0.5, 2.1, 99.5),
    ("LLaVA-Video-7B", 0.3, 3.0, 97.8),
    ("Qwen2-VL-7B", 0.5, 2.6, 102.7),
    ("LLaVA-Video-72B", 0.5, 2.3, 101.3),
    ("LLaVA-Video-72B", 0.3, 3.3, 99.1),
]


@pytest.mark.parametrize(("model", "budget", "speed_up", "relative"), SUMMARY)
def test_the_papers_cells_give_the_papers_summary(model, budget, speed_up, relative):
    rows = [r for r in paper_rows() if (r["model"], r["method"], r["kept_requested"]) == (model, "sttm", budget)]
    assert round(fmean(r["speed_up"] for r in rows), 1) == speed_up
    assert round(100 * fmean(r["relative"] for r in rows), 1) == relative


def test_the_papers_rows_are_marked_and_asked_for(recorded):
    runs = load_runs([recorded / "full"])
    assert set(build_table(runs)["source"]) == {"run"}
    both = build_table(runs, paper=True)
    assert set(both["source"]) == {"run", "paper"}
    full = both[(both["source"] == "paper") & (both["method"] == "none") & (both["setting"] == "all tokens")]
    assert (full["relative"] == 1).all()
