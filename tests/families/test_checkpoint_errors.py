"""What does not fit is named: tensor, shapes, file, and the way out."""

from __future__ import annotations

import json
import re

import pytest
import torch
from family_helpers import copy_of, edit

from sttm_lmms.benchmarks.presets import size_of
from sttm_lmms.errors import CheckpointError
from sttm_lmms.families import load_pretrained
from sttm_lmms.families.checkpoint import resolve_checkpoint
from sttm_lmms.families.hub import PUBLISHED
from sttm_lmms.families.llava import project_video
from sttm_lmms.provenance import collect_provenance

DAMAGES = {
    "missing": (
        lambda t: t.pop("model.layers.1.mlp.up_proj.weight"),
        r"missing: model\.language_model\.layers\.1\.mlp\.up_proj\.weight \[128, 64\]",
    ),
    "unexpected": (
        lambda t: t.update({"model.layers.4.mlp.extra": torch.zeros(3)}),
        r"unexpected: model\.layers\.4\.mlp\.extra \[3\] in model\.safetensors",
    ),
    "mis-shaped": (
        lambda t: t.update({"model.mm_projector.0.weight": torch.zeros(64, 31)}),
        r"mis-shaped: model\.mm_projector\.0\.weight is \[64, 31\] in model\.safetensors, expected \[64, 32\]",
    ),
    "newline": (lambda t: t.pop("model.image_newline"), r"missing: model\.image_newline \[64\]"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_tensors_that_do_not_fit_the_original_layout(checkpoint, tmp_path, damage):
    change, message = DAMAGES[damage]
    folder = copy_of(checkpoint("llava_video"), tmp_path / "damaged")
    edit(folder, change)
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(folder)


def take(tensors: dict, ending: str) -> torch.Tensor:
    return tensors.pop(next(name for name in tensors if name.endswith(ending)))


HF_DAMAGES = {
    "missing": (
        lambda t: take(t, "layers.1.mlp.up_proj.weight"),
        r"missing: model\.language_model\.layers\.1\.mlp\.up_proj\.weight",
    ),
    "unexpected": (
        lambda t: t.update({"model.language_model.extra": torch.zeros(3)}),
        r"unexpected: model\.language_model\.extra in model\.safetensors",
    ),
    "mis-shaped": (
        lambda t: t.update({"lm_head.weight": take(t, "lm_head.weight")[:, 1:].contiguous()}),
        r"mis-shaped: lm_head\.weight is \[320, 63\] in model\.safetensors, expected \[320, 64\]",
    ),
}


@pytest.mark.parametrize("name", ["llava_onevision", "qwen2_vl"])
@pytest.mark.parametrize("damage", HF_DAMAGES)
def test_tensors_that_do_not_fit_the_hugging_face_layout(checkpoint, tmp_path, name, damage):
    change, message = HF_DAMAGES[damage]
    folder = copy_of(checkpoint(name, "hf"), tmp_path / "damaged")
    edit(folder, change)
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(folder)


def test_files_that_are_not_there(checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_pretrained(tmp_path)
    folder = copy_of(checkpoint("llava_video"), tmp_path / "folder")
    weights = folder / "model.safetensors"

    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: truncated or broken"):
        load_pretrained(folder)
    weights.rename(folder / "model-00001-of-00002.safetensors")
    with pytest.raises(CheckpointError, match=r"download the index"):
        load_pretrained(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "other.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"other\.safetensors is missing"):
        load_pretrained(folder)
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model-00001-of-00002.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"only pickled weights.*safe_serialization"):
        load_pretrained(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"no model\.safetensors and no"):
        load_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        load_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["MambaForCausalLM"]}, r"\['MambaForCausalLM'\] are not supported; supported: LlavaQwen"),
        ({"mm_projector_type": "linear"}, r"mm_projector_type='linear' is not supported, only 'mlp2x_gelu'"),
        ({"mm_spatial_pool_mode": "max"}, "mm_spatial_pool_mode='max' is not supported, only 'bilinear'"),
        ({"vocab_size": 260}, "mis-shaped: lm_head.weight"),
    ],
)
def test_configurations_that_are_not_known(checkpoint, tmp_path, change, message):
    folder = copy_of(checkpoint("llava_video"), tmp_path / "changed")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(folder)


def test_no_tokenizer(checkpoint, tmp_path):
    folder = copy_of(checkpoint("llava_video"), tmp_path / "folder")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        load_pretrained(folder)


def test_tokenizer_of_another_model(checkpoint, loaded, tmp_path):
    _, _, processor = loaded("llava_video")
    folder = copy_of(checkpoint("llava_video"), tmp_path / "folder")
    tokenizer = type(processor.tokenizer).from_pretrained(folder)
    tokenizer.add_tokens([f"<more{i}>" for i in range(100)])
    tokenizer.save_pretrained(folder)
    load_pretrained(folder)  # <image> and <video> keep their rows

    content = (folder / "tokenizer.json").read_text().replace("<video>", "<film>")
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match="tokenizer and weights do not match"):
        load_pretrained(folder)


def test_where_a_checkpoint_can_be(tmp_path, monkeypatch):
    assert resolve_checkpoint(tmp_path) == tmp_path
    (tmp_path / "file").touch()
    for wrong, message in [
        (tmp_path / "absent", "no such folder"),
        ("./absent", "no such folder"),
        (tmp_path / "file", "is a file; give the folder"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            resolve_checkpoint(wrong)

    asked = {}

    def snapshot_download(name, **kwargs):
        asked.update(name=name, **kwargs)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert resolve_checkpoint("lmms-lab/LLaVA-Video-7B-Qwen2", revision="main") == tmp_path
    assert asked["name"] == "lmms-lab/LLaVA-Video-7B-Qwen2"
    assert asked["revision"] == "main"
    assert "*.safetensors" in asked["allow_patterns"]
    assert not any(pattern.endswith(".bin") for pattern in asked["allow_patterns"])


def test_average_pooling_is_overridden_as_published(checkpoint, loaded, tmp_path, caplog):
    folder = copy_of(checkpoint("llava_video"), tmp_path / "average")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"mm_spatial_pool_mode": "average"}))
    model, _ = load_pretrained(folder)
    assert "mm_spatial_pool_mode='average' is overridden with 'bilinear'" in caplog.text
    features = torch.randn(2, 169, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(project_video(model, features), project_video(loaded("llava_video")[1], features))


@pytest.mark.parametrize(
    ("error", "name", "said"),
    [
        (
            "RepositoryNotFoundError",
            "lmms-lab/LLaVA-Video-7B-Qwen",
            "did you mean lmms-lab/LLaVA-V.*spelling",
        ),
        ("RevisionNotFoundError", "lmms-lab/LLaVA-Video-7B-Qwen2", "has no revision 'v2'.*or leave revision out"),
        ("GatedRepoError", "owner/name", "accept its terms on its page of the hub, then log in"),
        ("ConnectionError", "owner/name", "fill the cache first: hf download owner/name"),
    ],
)
def test_what_the_hub_says_is_one_line_with_the_way_out(monkeypatch, error, name, said):
    def snapshot_download(*_, **__):
        raise type(error, (Exception,), {})("404 Client Error. (Request ID: x)\n\nNot found.\nPlease make sure ...")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(CheckpointError, match=said) as raised:
        load_pretrained(name, revision="v2")
    assert "\n" not in str(raised.value)


def test_published_ids_have_a_size():
    for name in (name for names in PUBLISHED.values() for name in names):
        unsized = re.fullmatch(r"zai-org/GLM-4\.\dV(-Flash)?", name)  # their names hold a version alone
        assert unsized or re.fullmatch(r"\d+(\.\d+)?[bm]", size_of(name)), name


def test_the_commit_that_was_loaded(checkpoint, tmp_path, monkeypatch):
    """Weights are fetched at the commit whose configuration was looked at, and the provenance names
    it."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = copy_of(checkpoint("llava_video"), tmp_path / "snapshots" / commit)
    asked = []

    def snapshot_download(name, *, revision, allow_patterns):
        asked.append((revision, "config.json" in allow_patterns))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    model, _ = load_pretrained("lmms-lab/LLaVA-Video-7B-Qwen2", revision="main")
    assert asked == [("main", True), (commit, False)]
    assert collect_provenance(model).checkpoint_commit == commit
    assert collect_provenance(load_pretrained(checkpoint("llava_video"))[0]).checkpoint_commit is None


def test_a_folder_has_no_revision(checkpoint):
    with pytest.raises(CheckpointError, match="revision='main' belongs to hub ids"):
        load_pretrained(checkpoint("llava_video"), revision="main")


def test_the_hub_is_offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="nobody/nothing: not a local folder, and the hub gave"):
        load_pretrained("nobody/nothing")


def test_an_unsupported_checkpoint_is_not_downloaded(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    asked = []

    def snapshot_download(name, *, allow_patterns, **kwargs):
        asked.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(CheckpointError, match="LlamaForCausalLM"):
        load_pretrained("somebody/llama-70b")
    assert asked == [["config.json"]]
