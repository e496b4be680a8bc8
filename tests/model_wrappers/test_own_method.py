"""A ninth method in a file outside of the package: by import path, by entry point, and in plain
transformers."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from lmms_eval.api.instance import Instance

from sttm_lmms import VideoSpan, get_method, reduce_tokens
from sttm_lmms import methods as registry
from sttm_lmms.model_wrappers.arguments import parse_arguments
from sttm_lmms.model_wrappers.models import LlavaVideo
from sttm_lmms.testing.tiny import tiny_model

FOLDER = Path(__file__).parent / "elsewhere"
PATH = "every_nth:EveryNth"


@pytest.fixture(autouse=True)
def outside(monkeypatch):
    """The file can be imported, and nothing of it stays in the registry."""
    monkeypatch.syspath_prepend(str(FOLDER))
    known = {name: get_method(name) for name in registry.BUILT_IN}
    monkeypatch.setattr(registry, "_CLASSES", known)
    yield
    sys.modules.pop("every_nth", None)


@pytest.fixture
def offered(tmp_path, monkeypatch):
    """The entry point of an installed package."""
    info = tmp_path / "elsewhere-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{registry.GROUP}]\nevery_nth = {PATH}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "every_nth" in [point.name for point in metadata.entry_points(group=registry.GROUP)]
    return tmp_path


def test_it_is_short():
    assert len((FOLDER / "every_nth.py").read_text().splitlines()) <= 25


def answer(checkpoint, video, **arguments):
    """The record of one question through lmms-eval's wrapper."""
    wrapper = LlavaVideo(pretrained=str(checkpoint), device="cpu", max_frames=4, **arguments)
    wrapper.task_dict = {"t": {"test": [None]}}
    parts = [{"type": "video", "url": str(video)}, {"type": "text", "text": "What moves?"}]

    def messages(_):
        return [{"role": "user", "content": parts}]

    about = {"task": "t", "doc_id": 0, "repeats": 1}
    request = Instance("generate_until", ("", messages, {"max_new_tokens": 3}, 0, "t", "test"), 0, about)
    (result,) = wrapper.generate_until([request])
    return result.token_counts.to_dict()


def test_the_wrapper_by_import_path(checkpoints, data):
    video = sorted((data / "vnbench" / "videos").iterdir())[0]
    record = answer(checkpoints["llava_video"], video, method=PATH, n=4)
    assert (record["visual_tokens"], record["kept_tokens"]) == (4 * 49, 49)
    assert record["provenance"]["settings"]["n"] == 4


def test_the_wrapper_by_entry_point(checkpoints, data, offered):
    video = sorted((data / "vnbench" / "videos").iterdir())[0]
    assert "every_nth" in registry.method_names()
    record = answer(checkpoints["llava_video"], video, method="every_nth", start_layer=0)
    assert record["kept_tokens"] == 2 * 49
    with pytest.raises(ValueError, match="n=0"):
        answer(checkpoints["llava_video"], video, method="every_nth", n=0)


def test_plain_transformers():
    model, _ = tiny_model("llava_video")
    method = get_method(PATH)(n=3)
    assert method.name == PATH
    with torch.inference_mode(), reduce_tokens(model, method, spans=[VideoSpan(2, (4, 3, 3))]) as report:
        model(inputs_embeds=torch.randn(1, 44, 64))
    assert report.kept_tokens == 12


def test_what_is_no_method_is_refused():
    for path, message in (("every_nth:Nobody", "cannot be imported"), ("pathlib:Path", "not a subclass")):
        with pytest.raises(ValueError, match=message):
            get_method(path)


def test_another_process_finds_it(offered):
    """In a process of its own, which has never seen the class."""
    code = "from sttm_lmms.methods import get_method; print(get_method('every_nth')(n=5))"
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{offered}:{FOLDER}"},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert "EveryNth(" in found.stdout
    assert "n=5" in found.stdout


def test_a_broken_method_of_another_package_stops_no_other(offered):
    (offered / "elsewhere-1.0.dist-info" / "entry_points.txt").write_text(
        f"[{registry.GROUP}]\nbroken = not_there:Class\n"
    )
    assert parse_arguments({"pretrained": "x", "budget": 0.5}).method == "sttm"
    with pytest.raises(ValueError, match=r"method='broken' cannot be imported from not_there:Class"):
        parse_arguments({"pretrained": "x", "method": "broken"})
