"""What a run says about itself: read back as written, asked of a real model, and free of heavy
imports."""

import subprocess
import sys
from dataclasses import asdict, fields, replace

import pytest

from sttm_lmms import STTMConfig
from sttm_lmms.provenance import HEADLINE, METRIC_PREFIX, Provenance, RunSummary, collect_provenance
from sttm_lmms.runtime import Answer

RECORD = {
    *("input_tokens", "output_tokens", "visual_tokens", "kept_tokens", "layer_tokens", "reduced", "reused", "video"),
    *("timing_s", "error", "provenance"),
}
PROVENANCE = {
    *("method", "settings", "checkpoint", "checkpoint_commit", "family", "frames", "fps", "sampling", "video_backend"),
    *("newline", "reuse", "attention", "dtype", "device", "package", "commit", "lmms_eval", "transformers", "torch"),
    *("python", "platform"),
}
THROUGHPUT = {
    *("questions", "questions_per_s", "failures", "videos_decoded", "vision_passes", "prefills", "reduction_asked"),
    *("reduced_share", "requested_budget", "tokens_before", "tokens_after", "layer_tokens_mean", "kv_share_mean"),
    *("kept_share_mean", "kept_share_min", "kept_share_max", "ttft_s", "ttft_first_s", "ttft_end_to_end_s"),
    *("video_decode_s", "preprocess_s", "vision_s", "prefill_before_s", "merge_s", "prefill_after_s", "prefill_s"),
    *("decode_s_per_token", "peak_memory_bytes"),
}


def test_the_keys_of_result_files_are_there_for_good():
    """Files that were written once are read for years; a key may join, none may go."""
    answer = Answer(text="B", layer_tokens=2.0, timing={"ttft": 0.5}, error="cannot be decoded")
    record = answer.record(video="v1", provenance=Provenance())
    assert set(record) >= RECORD
    assert set(record["provenance"]) >= PROVENANCE
    assert {field.name for field in fields(RunSummary)} >= THROUGHPUT


def test_imports_neither_torch_nor_transformers():
    code = "import sys, sttm_lmms.provenance; sys.exit(bool({'torch', 'transformers', 'lmms_eval'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_summary_survives_lmms_evals_prefix():
    summary = RunSummary(questions=12, reduction_asked=1, reduced_share=0.75, kept_share_mean=0.5)
    metrics = summary.metrics()
    assert "peak_memory_bytes" not in metrics, "what was not measured is not reported"
    assert all(isinstance(value, (int, float)) for value in metrics.values()), "lmms-eval drops everything else"
    written = {METRIC_PREFIX + key: value for key, value in metrics.items()}
    assert RunSummary.from_throughput({**written, "avg_speed": 4.0}) == summary


def test_a_run_prints_ten_numbers_and_names_failures_where_there_were_any():
    everything = RunSummary(**dict.fromkeys(THROUGHPUT, 1))
    assert set(everything.headline()) == set(HEADLINE) <= THROUGHPUT
    printed = replace(everything, failures=0).headline()
    assert len(printed) == 10
    assert RunSummary.from_throughput({METRIC_PREFIX + key: value for key, value in printed.items()}).failures == 0


def test_provenance_survives_json():
    provenance = Provenance(method="sttm", settings={"budget": 0.5}, frames=128)
    assert Provenance.from_dict({**asdict(provenance), "of a later version": 1}) == provenance


def test_asks_the_model_the_packages_and_the_machine():
    from sttm_lmms.testing.tiny import tiny_model
    from sttm_lmms.video import VideoSettings

    model, _ = tiny_model("llava_onevision")
    found = collect_provenance(
        model,
        method="sttm",
        config=STTMConfig(budget=0.3),
        checkpoint="tiny",
        family="llava_onevision",
        video=VideoSettings(max_frames=64, fps=2.0),
        newline="no_token",
        reuse="prefix",
    )
    assert (found.checkpoint, found.frames, found.fps, found.newline) == ("tiny", 64, 2.0, "no_token")
    assert found.dtype == "float32"
    assert found.device == "cpu"
    assert found.attention in ("sdpa", "eager")
    assert found.settings["budget"] == 0.3
    assert "spatial_threshold" not in found.settings, "settings that were not given say nothing"
    unknown = {f.name for f in fields(found) if getattr(found, f.name) is None}
    assert unknown <= {"checkpoint_commit", "commit", "lmms_eval"}


def test_baseline_has_no_settings():
    assert dict(collect_provenance().settings) == {}


@pytest.mark.parametrize("error", [None, "cannot be decoded"])
def test_record_of_an_answer(error):
    answer = Answer(
        input_tokens=800,
        output_tokens=2,
        visual_tokens=784,
        kept_tokens=392,
        layer_tokens=392.0,
        reused=True,
        timing={"ttft": 0.1234567891},
        error=error,
    )
    record = answer.record(video="v1", provenance=Provenance(method="sttm"))
    assert record["timing_s"] == {"ttft": 0.123457}
    assert (record["video"], record["reused"], record["reduced"]) == ("v1", True, True)
    assert record["provenance"]["method"] == "sttm"
    assert record.get("error") == error
    assert "provenance" not in answer.record()
