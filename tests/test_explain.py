"""The sentence that ends a run that failed: what was wrong and the way out."""

from __future__ import annotations

import pytest
import torch

from sttm_lmms.errors import CheckpointError
from sttm_lmms.explain import format_error, is_out_of_memory
from sttm_lmms.families.hub import closest_id, data_set_sentence, hub_sentence


def hub_error(name: str, text: str = "no") -> Exception:
    """One of the hub client's errors, which want a response that there is none of here."""
    errors = pytest.importorskip("huggingface_hub.errors")
    kind = getattr(errors, name)
    error = kind.__new__(kind)
    error.args = (text,)
    return error


@pytest.fixture(autouse=True)
def online(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("lmms-lab/LLaVA-Video-7B-Quen2", "lmms-lab/LLaVA-Video-7B-Qwen2"),
        ("lmms-lab/llava-video-7b-qwen2", "lmms-lab/LLaVA-Video-7B-Qwen2"),
        ("Qwen/Qwen2-VL-7B", "Qwen/Qwen2-VL-7B-Instruct"),
        ("lmms-lab/llava-onevision-qwen2-72b-ov", "lmms-lab/llava-onevision-qwen2-72b-ov-sft"),
        ("Qwen/Qwen2-VL-7B-Instruct", None),
        ("somebody/something-else", None),
    ],
)
def test_the_id_that_was_meant(name, meant):
    assert closest_id(name) == meant


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (
            "GatedRepoError",
            ("is gated: accept its terms on its page of the hub", "hf auth login"),
        ),
        ("RepositoryNotFoundError", ("did you mean lmms-lab/LLaVA-Video-7B-Qwen2?", "private", "HF_TOKEN")),
        ("RevisionNotFoundError", ("has no revision", "a branch, a tag or a commit")),
        ("LocalEntryNotFoundError", ("LocalEntryNotFoundError: no", "hf download lmms-lab/LLaVA-Video-7B-Qwen2")),
    ],
)
def test_a_checkpoint_that_the_hub_does_not_give(kind, words):
    text = hub_sentence("lmms-lab/LLaVA-Video-7B-Quen2", hub_error(kind))
    assert all(word in text for word in words), text
    assert "\n" not in text


def test_the_hub_is_offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "(HF_HUB_OFFLINE is set)" in hub_sentence("a/b", hub_error("LocalEntryNotFoundError"))
    assert "(HF_HUB_OFFLINE is set)" in data_set_sentence(hub_error("LocalEntryNotFoundError"))


def test_a_data_set_that_cannot_be_had():
    reached = ConnectionError("Couldn't reach 'lmms-lab/NExTQA' on the Hub (LocalEntryNotFoundError)")
    text = format_error(reached)
    assert text.startswith("the data set lmms-lab/NExTQA could not be had (ConnectionError: Couldn't reach")
    assert "hf download lmms-lab/NExTQA --repo-type dataset" in text
    gated = data_set_sentence(
        hub_error("GatedRepoError", "Access to dataset longvideobench/LongVideoBench is restricted")
    )
    assert "the data set longvideobench/LongVideoBench is gated" in gated
    assert "longvideobench/LongVideoBench is gated: accept its terms" in gated


def test_a_retry_stands_for_its_last_attempt():
    """lmms-eval's downloads are retried by tenacity, whose own message says nothing."""
    tenacity = pytest.importorskip("tenacity")

    @tenacity.retry(stop=tenacity.stop_after_attempt(2))
    def download():
        raise hub_error("LocalEntryNotFoundError")

    with pytest.raises(tenacity.RetryError) as caught:
        download()
    assert format_error(caught.value).startswith(
        "the data set of a task could not be had (LocalEntryNotFoundError: no)"
    )


def test_our_own_errors_are_their_own_sentence():
    error = CheckpointError("it is broken; download it again")
    error.__cause__ = hub_error("GatedRepoError")
    assert format_error(error) == "it is broken; download it again"
    assert format_error(ValueError("fps=0 is out of range")) == "fps=0 is out of range"
    assert format_error(KeyError("x")) == "KeyError: 'x'"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_memory(error):
    assert is_out_of_memory(error)
    assert "lower batch_size, keep, max_frames, budget or host_cache_gb" in format_error(error)
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
