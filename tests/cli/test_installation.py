"""``sttm-lmms check`` on this machine: it finds what is there and says what to do about what is
not."""

from __future__ import annotations

from importlib import metadata

import pytest

from sttm_lmms.cli import installation


def by_subject(findings):
    return {finding.subject: finding for finding in findings}


def test_this_installation_has_no_problem(tmp_path):
    pytest.importorskip("lmms_eval")
    found = by_subject(installation.examine(data=tmp_path))
    assert [f.subject for f in found.values() if f.status == "problem"] == []
    assert {"packages", "attn_implementation", "video backend pyav", "--model sttm_qwen2_vl", "tasks"} <= set(found)
    assert found["data root"].status == "note"
    assert "STTM_DATA_ROOT" in found["data root"].advice


def test_a_package_outside_of_its_range(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: "4.0")
    finding = installation._requirement("transformers<5.25,>=5.17")
    assert (finding.status, finding.advice) == ("problem", "pip install 'transformers<5.25,>=5.17'")
    assert "4.0 is outside of" in finding.detail


def test_a_package_that_is_not_there():
    finding = installation._requirement("surely-not-installed>=1")
    assert (finding.status, finding.detail) == ("problem", "not installed")


def test_a_data_root_with_annotations(tmp_path):
    (tmp_path / "vnbench" / "annotations").mkdir(parents=True)
    (finding,) = installation._data(tmp_path)
    assert finding.status == "ok"
    assert "vnbench" in finding.detail


def test_checkpoints_of_known_and_unknown_layout(tmp_path):
    from sttm_lmms.testing.tiny import build_tiny_checkpoint

    (known,) = installation._checkpoint(str(build_tiny_checkpoint(tmp_path / "known", "llava_video")))
    assert known.status == "ok"
    assert "llava_video, original layout" in known.detail
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    (unknown,) = installation._checkpoint(str(tmp_path))
    assert unknown.status == "problem"
    assert "BertModel" in unknown.detail
    (absent,) = installation._checkpoint("nobody/nothing")
    assert absent.status == "problem"
    assert "neither a folder nor in the hub cache" in absent.detail


def test_a_check_that_fails_is_a_finding(monkeypatch):
    def fail():
        raise RuntimeError("operator torchvision::nms does not exist")
        yield

    monkeypatch.setattr(installation, "_versions", fail)
    first = next(installation.examine())
    assert first.status == "problem"
    assert "torchvision::nms" in first.detail
