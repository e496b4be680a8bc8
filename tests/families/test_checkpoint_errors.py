"""What does not fit is named: tensor, shapes, file, and the way out."""

from __future__ import annotations

import json

import pytest
import torch
from family_helpers import copy_of, edit

from sttm_lmms.errors import CheckpointError
from sttm_lmms.families import load_pretrained
from sttm_lmms.families.checkpoint import resolve_checkpoint

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
        ({"mm_spatial_pool_mode": "average"}, "mm_spatial_pool_mode='average' is not supported"),
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
