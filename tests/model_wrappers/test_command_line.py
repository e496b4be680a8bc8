"""The real command line of lmms-eval, without any network, judged by its result files: a failed run
exits 0 as well."""

from __future__ import annotations

import shutil

import pytest
from warm_ranks import warm_lmms_eval
from wrapper_runs import FAMILIES, HERE, QUESTIONS, VIDEOS, lmms_eval

pytestmark = pytest.mark.slow

SETTINGS = "spatial_threshold=0.6,temporal_threshold=0.5,max_frames=4,device=cpu"
SHORT = ("--gen_kwargs", "max_new_tokens=4")


def arguments(checkpoints, family, settings=SETTINGS):
    return ["--model", f"sttm_{family}", "--model_args", f"pretrained={checkpoints[family]},{settings}", *SHORT]


@pytest.fixture(scope="module")
def run(data, checkpoints, tmp_path_factory):
    """One run of LLaVA-Video that several tests look at."""
    return lmms_eval(data, tmp_path_factory.mktemp("run"), *arguments(checkpoints, "llava_video"))


def test_a_run_has_a_score_and_says_what_it_did(run):
    assert run.results is not None, run.printed[-3000:]
    assert 0 <= run.results["results"]["vnbench"]["accuracy,none"] <= 1
    assert run.results["config"]["model"] == "sttm_llava_video"
    numbers = run.throughput
    assert numbers["avg_questions"] == len(run.answers()) == QUESTIONS
    assert numbers["avg_videos_decoded"] == numbers["avg_prefills"] == numbers["avg_vision_passes"] == VIDEOS
    assert numbers["avg_reduction_asked"] == numbers["avg_reduced_share"] == 1
    assert 0 < numbers["avg_kept_share_min"] <= numbers["avg_kept_share_mean"] <= numbers["avg_kept_share_max"] < 1
    assert numbers["avg_tokens_before"] == 4 * 49
    assert numbers["avg_ttft_s"] > 0
    assert numbers["avg_decode_s_per_token"] > 0
    ours = {name.removeprefix("avg_") for name in run.results["throughput"]} - {"speed"}
    assert "| avg_kept_share_mean" in " ".join(run.printed.replace("|", " | ").split())
    assert len(ours - {"total_gen_tokens", "total_elapsed_time"}) <= 10, "what lmms-eval prints is short"


def test_every_answer_has_its_record(run):
    records = [sample["token_counts"][0] for sample in run.samples["vnbench"]]
    assert all(0 < record["kept_tokens"] < record["visual_tokens"] for record in records)
    described = [record["provenance"] for record in records if "provenance" in record]
    assert len(described) == 1
    assert described[0]["settings"]["temporal_threshold"] == 0.5
    assert described[0]["lmms_eval"] == "0.7.3"
    assert described[0]["frames"] == 4


def test_the_result_file_holds_no_documents(run):
    assert "Which of these objects" not in str(run.results["configs"])


def test_an_interrupted_run_goes_on_from_the_response_cache(run, data, checkpoints, tmp_path):
    cache = ("--use_cache", str(tmp_path / "cache"))
    first = warm_lmms_eval(data, tmp_path / "first", *arguments(checkpoints, "llava_video"), *cache, "--limit", "5")
    assert first.results is not None, first.printed[-3000:]
    assert len(first.answers()) == 5
    second = warm_lmms_eval(data, tmp_path / "second", *arguments(checkpoints, "llava_video"), *cache)
    assert second.results is not None, second.printed[-3000:]
    assert second.answers() == run.answers()
    # Empty answers are not kept by lmms-eval, so some of the five may be asked again.
    assert QUESTIONS - 5 <= second.throughput["avg_questions"] < QUESTIONS


def test_broken_videos_are_counted_and_listed(broken_data, checkpoints, tmp_path):
    run = warm_lmms_eval(broken_data, tmp_path / "out", *arguments(checkpoints, "llava_video"))
    assert run.results is not None, run.printed[-3000:]
    assert run.throughput["avg_failures"] == 2
    errors = [sample["token_counts"][0].get("error") for sample in run.samples["vnbench"]]
    unanswered = len([error for error in errors if error])
    assert unanswered in (7, 8)  # four questions for each video, three for the last one
    assert all(sample["accuracy"]["score"] == 0 for sample, e in zip(run.samples["vnbench"], errors, strict=True) if e)
    assert f"{unanswered} questions have no answer because a source could not be read" in run.printed


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (SETTINGS + ",on_error=raise", ".mp4: "),
        ("spatial_threshold=1.5,temporal_threshold=1.5,max_frames=4,device=cpu", "answers had fewer"),
    ],
)
def test_a_run_that_must_not_count_leaves_no_score(settings, message, broken_data, checkpoints, tmp_path):
    run = warm_lmms_eval(broken_data, tmp_path / "out", *arguments(checkpoints, "llava_video", settings))
    assert message in run.printed
    assert run.results is None


@pytest.mark.parametrize("family", FAMILIES)
def test_stock_tasks_of_lmms_eval(family, stock_tasks, data, checkpoints, tmp_path):
    for folder in stock_tasks.videos.values():
        for number, video in enumerate(sorted((data / "vnbench" / "videos").iterdir())[:2]):
            shutil.copy(video, folder / f"clip{number}.mp4")
    run = warm_lmms_eval(
        data,
        tmp_path / "out",
        *arguments(checkpoints, family),
        *("--include_path", str(stock_tasks.include_path)),
        tasks=",".join(stock_tasks.names),
        HF_HOME=str(stock_tasks.hf_home),
    )
    assert run.results is not None, run.printed[-3000:]
    assert set(run.results["results"]) == set(stock_tasks.names)
    assert run.throughput["avg_failures"] == 0
    assert run.throughput["avg_reduced_share"] == 1
    for name in stock_tasks.names:
        assert all("error" not in sample["token_counts"][0] for sample in run.samples[name])


def test_multiple_choice_and_several_rounds(data, checkpoints, tmp_path):
    run = warm_lmms_eval(
        data,
        tmp_path / "out",
        *arguments(checkpoints, "qwen2_vl"),
        *("--include_path", str(HERE / "tasks"), "--force_simple"),
        tasks="mini_choice,mini_rounds",
    )
    assert run.results is not None, run.printed[-3000:]
    assert 0 <= run.results["results"]["mini_choice"]["acc,none"] <= 1
    assert len(run.samples["mini_choice"]) == QUESTIONS
    assert run.results["results"]["mini_rounds"]["rounds,none"] == 2
