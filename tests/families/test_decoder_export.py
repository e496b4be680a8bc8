"""The exported decoder is the decoder: same logits, every layout, nothing copied that can be
linked."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from sttm_lmms.errors import CheckpointError
from sttm_lmms.families import load_pretrained
from sttm_lmms.families.decoder_export import export_decoder, plain_name
from sttm_lmms.testing.export import save_original
from sttm_lmms.testing.tiny import build_tiny_checkpoint


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return build_tiny_checkpoint(tmp_path_factory.mktemp("export") / "original", "llava_video")


def same_logits(checkpoint, exported):
    model, _ = load_pretrained(checkpoint, dtype=torch.float32)
    plain = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    embeds = torch.randn(1, 9, plain.config.hidden_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return torch.equal(plain(inputs_embeds=embeds).logits, model(inputs_embeds=embeds).logits)


def test_the_original_layout(original, tmp_path):
    out = export_decoder(original, tmp_path / "plain")
    assert same_logits(original, out)


def test_the_hugging_face_layout(original, tmp_path):
    model, processor = load_pretrained(original, dtype=torch.float32)
    model.save_pretrained(tmp_path / "hf")
    processor.save_pretrained(tmp_path / "hf")
    assert same_logits(tmp_path / "hf", export_decoder(tmp_path / "hf", tmp_path / "plain"))


def test_files_of_the_decoder_alone_are_links(original, tmp_path):
    model, processor = load_pretrained(original, dtype=torch.float32)
    save_original(model, processor, tmp_path / "shards", max_shard_size="50KB")
    tower = original / "vision_tower_config.json"
    if not (tmp_path / "shards" / tower.name).is_file():
        shutil.copy(tower, tmp_path / "shards")
    out = export_decoder(tmp_path / "shards", tmp_path / "plain")
    shards = list(out.glob("model-*.safetensors"))
    linked = [shard for shard in shards if shard.samefile(tmp_path / "shards" / shard.name)]
    assert linked
    assert same_logits(tmp_path / "shards", out)


def test_a_finished_export_is_left_alone_and_an_unfinished_one_is_not(original, tmp_path):
    out = export_decoder(original, tmp_path / "plain")
    written = (out / "model.safetensors").stat().st_mtime_ns
    assert export_decoder(original, out).joinpath("model.safetensors").stat().st_mtime_ns == written
    (out / "exported.json").unlink()
    export_decoder(original, out)
    assert (out / "model.safetensors").stat().st_mtime_ns > written


def test_another_configuration_or_tokenizer_is_another_export(tmp_path):
    """The weights are the same file; what else the export was made from is not."""
    checkpoint = build_tiny_checkpoint(tmp_path / "checkpoint", "llava_video")
    out = export_decoder(checkpoint, tmp_path / "plain")
    for name, change in (("config.json", {"rope_theta": 5e5}), ("tokenizer_config.json", {"model_max_length": 77})):
        known = json.loads((checkpoint / name).read_text())
        (checkpoint / name).unlink()  # as a hub's download does: a new file, not the old one written over
        (checkpoint / name).write_text(json.dumps(known | change))
        export_decoder(checkpoint, out)
    assert "500000.0" in json.dumps(json.loads((out / "config.json").read_text()))
    assert json.loads((out / "tokenizer_config.json").read_text())["model_max_length"] == 77
    (out / "config.json").unlink()
    assert (export_decoder(checkpoint, out) / "config.json").is_file()


def test_nothing_of_an_earlier_export_is_left(original, tmp_path):
    """transformers would take the old single file, not the new shards."""
    model, processor = load_pretrained(original, dtype=torch.float32)
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(original, checkpoint)
    out = export_decoder(checkpoint, tmp_path / "plain")
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    (checkpoint / "model.safetensors").unlink()
    save_original(model, processor, checkpoint, max_shard_size="50KB")
    assert same_logits(checkpoint, export_decoder(checkpoint, out))
    assert not (out / "model.safetensors").exists()


def test_weights_of_somebody_else_are_neither_deleted_nor_mixed_with_ours(original, tmp_path):
    (tmp_path / "other.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"other\.safetensors, which no export wrote"):
        export_decoder(original, tmp_path)
    with pytest.raises(CheckpointError, match="the checkpoint itself"):
        export_decoder(original, original)


def test_mrope_families_are_refused_with_the_reason(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Qwen2VLForConditionalGeneration"]}))
    with pytest.raises(CheckpointError, match="M-RoPE"):
        export_decoder(tmp_path, tmp_path / "plain")


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("language_model.model.norm.weight", "model.norm.weight"),
        ("model.language_model.embed_tokens.weight", "model.embed_tokens.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("model.vision_tower.vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight", None),
        ("model.mm_projector.0.weight", None),
        ("model.image_newline", None),
    ],
)
def test_names(name, plain):
    assert plain_name(name) == plain
