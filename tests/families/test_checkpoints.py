"""Loading: every layout, shards, devices and dtypes, and an exact message for what does not fit."""

from __future__ import annotations

import json

import pytest
import torch
from family_helpers import clip, copy_of, edit, last_logits
from safetensors.torch import load_file
from transformers import LlavaOnevisionForConditionalGeneration, Qwen2Config, Qwen2ForCausalLM

from sttm_lmms.errors import CheckpointError, UnsupportedModelError
from sttm_lmms.families import family_of, get_family, layout_of, load_pretrained
from sttm_lmms.families.lmms_lab import KNOWN_TOWERS, grid_pinpoints, model_config, rename, tower_config
from sttm_lmms.testing.export import original_name, save_original
from sttm_lmms.testing.tiny import build_tiny_checkpoint

QUESTION = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Why?"}]}]


def answer(model, processor) -> torch.Tensor:
    """Last logits for a question about a clip: tower, projector, embeddings and decoder all take
    part."""
    family = family_of(model)
    prepared = family.prepare(model, processor, QUESTION, [family.vision_features(model, processor, clip())])
    return last_logits(model, prepared).float().cpu()


def assert_same(one: torch.Tensor, other: torch.Tensor) -> None:
    """Equal but for the last digits, which change with where in memory the weights lie."""
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["llava_video", "llava_onevision"])
def test_both_layouts_give_the_same(loaded, name):
    results = {}
    for layout in ("original", "hf"):
        family, model, processor = loaded(name, layout)
        assert family.name == name
        assert not model.training
        results[layout] = answer(model, processor)
    assert_same(results["original"], results["hf"])
    assert results["hf"].std() > 0


def test_layouts_are_told_apart(checkpoint):
    for name in ("llava_video", "llava_onevision"):
        for layout in ("original", "hf"):
            family, found = layout_of(checkpoint(name, layout))
            assert (family.name, found) == (name, layout)
    assert layout_of(checkpoint("qwen2_vl", "hf"))[0].name == "qwen2_vl"


def test_the_original_layout_is_original(checkpoint):
    folder = checkpoint("llava_video")
    names = set(load_file(folder / "model.safetensors"))
    assert {"model.image_newline", "model.mm_projector.0.weight", "lm_head.weight"} <= names
    assert "model.vision_tower.vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias" in names
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlavaQwenForCausalLM"]
    assert not (folder / "preprocessor_config.json").exists()
    assert all(original_name(rename(name)) == name for name in names)


@pytest.mark.parametrize(("name", "layout"), [("llava_video", "original"), ("qwen2_vl", "hf")])
def test_shards_and_tied_embeddings(tmp_path, name, layout):
    whole = build_tiny_checkpoint(tmp_path / "whole", name, layout, tie_word_embeddings=True)
    parts = build_tiny_checkpoint(tmp_path / "parts", name, layout, tie_word_embeddings=True, max_shard_size="100KB")
    assert len(list(parts.glob("*.safetensors"))) > 3
    assert "lm_head.weight" not in load_file(whole / "model.safetensors")
    one, several = load_pretrained(whole), load_pretrained(parts)
    assert one[0].lm_head.weight is one[0].get_input_embeddings().weight
    assert_same(answer(*one), answer(*several))


@pytest.mark.filterwarnings("ignore:The following device_map keys do not match:UserWarning")
@pytest.mark.parametrize(("name", "layout"), [("llava_onevision", "original"), ("qwen2_vl", "hf")])
@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_offloading_changes_nothing(loaded, checkpoint, tmp_path, name, layout, place):
    _, model, processor = loaded(name, layout)
    children = {f"model.{child}": "cpu" for child, _ in model.model.named_children()}
    children |= {f"model.{p}": "cpu" for p, _ in model.model.named_parameters(recurse=False)}
    children |= {"lm_head": "cpu"}
    tower = next(child for child in children if "vis" in child)
    children[tower] = place
    decoder = children.pop("model.language_model")
    children |= {f"model.language_model.{part}": decoder for part in ("embed_tokens", "norm", "rotary_emb")}
    children |= {f"model.language_model.layers.{i}": place if i % 2 else "cpu" for i in range(4)}
    offloaded, _ = load_pretrained(
        checkpoint(name, layout), dtype=torch.float32, device_map=children, offload_folder=tmp_path
    )
    if place == "disk":
        assert next(offloaded.model.language_model.layers[1].parameters()).device.type == "meta"
    assert_same(answer(offloaded, processor), answer(model, processor))


def test_everything_on_disk(loaded, checkpoint, tmp_path):
    _, model, processor = loaded("llava_video")
    offloaded, _ = load_pretrained(
        checkpoint("llava_video"), dtype=torch.float32, device_map={"": "disk"}, offload_folder=tmp_path
    )
    assert_same(answer(offloaded, processor), answer(model, processor))


@pytest.mark.parametrize(("name", "layout"), [("llava_video", "original"), ("qwen2_vl", "hf")])
def test_bfloat16(loaded, checkpoint, name, layout):
    _, model, processor = loaded(name, layout)
    half, _ = load_pretrained(checkpoint(name, layout), dtype="bfloat16", attn_implementation="eager")
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert half.config._attn_implementation == "eager"
    exact = answer(model, processor)
    assert (answer(half, processor) - exact).abs().max() < 0.1 * exact.abs().max()


def test_dtype_auto_is_the_checkpoints(tmp_path):
    folder = build_tiny_checkpoint(tmp_path / "half", "llava_video", dtype=torch.bfloat16)
    assert load_pretrained(folder)[0].dtype == torch.bfloat16


def test_saving_writes_the_hugging_face_layout(loaded, tmp_path):
    family, model, processor = loaded("llava_video", "original")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, processor_again = load_pretrained(tmp_path)
    assert layout_of(tmp_path) == (family, "hf")
    assert_same(answer(again, processor_again), answer(model, processor))


def test_what_a_published_file_carries_beyond_the_model(loaded, checkpoint, tmp_path):
    folder = copy_of(checkpoint("llava_video"), tmp_path / "full")
    tower = "model.vision_tower.vision_tower.vision_model."

    def add(tensors):
        for key in [key for key in tensors if key.startswith(f"{tower}encoder.layers.1.")]:
            tensors[key.replace("layers.1.", "layers.2.")] = tensors[key].clone()  # the layer that is never run
        tensors[f"{tower}head.probe"] = torch.zeros(1, 1, 32)
        for key in [key for key in tensors if "post_layernorm" in key]:
            del tensors[key]

    edit(folder, add)
    _, model, processor = loaded("llava_video")
    assert_same(answer(*load_pretrained(folder)), answer(model, processor))


def test_families_by_name_and_by_model(loaded):
    with pytest.raises(ValueError, match=r"unknown model family 'lava_video'. Did you mean 'llava_video'\?"):
        get_family("lava_video")
    text = Qwen2ForCausalLM(
        Qwen2Config(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, vocab_size=8)
    )
    with pytest.raises(UnsupportedModelError, match="Qwen2ForCausalLM is not supported; supported classes: LlavaOne"):
        family_of(text)


def test_converted_checkpoints_have_only_their_name(loaded):
    _, model, _ = loaded("llava_onevision", "hf")
    config = type(model.config)(
        **{"vision_config": model.config.vision_config, "text_config": model.config.text_config}
    )
    with torch.device("meta"):
        stock = LlavaOnevisionForConditionalGeneration(config)
    stock.config.name_or_path = "llava-hf/llava-onevision-qwen2-7b-ov-hf"
    assert family_of(stock).name == "llava_onevision"
    stock.config.name_or_path = "somebody/LLaVA_Video-7B-hf"
    assert family_of(stock).name == "llava_video"
    stock.config.name_or_path = "llava-video-experiments/llava-onevision-7b"
    assert family_of(stock).name == "llava_onevision"
    stock.config.mm_newline_position = "grid"
    assert family_of(stock).name == "llava_video"


def test_a_converted_checkpoint_can_be_told_which_family_it_is(checkpoint, tmp_path):
    folder = copy_of(checkpoint("llava_onevision", "hf"), tmp_path / "converted")
    config = json.loads((folder / "config.json").read_text())
    for field in ("mm_newline_position", "add_time_instruction"):
        del config[field]
    (folder / "config.json").write_text(json.dumps(config))
    for name, newline in (("llava_video", "grid"), ("llava_onevision", "one_token")):
        model, _ = load_pretrained(folder, family=name)
        assert family_of(model).name == name
        assert model.config.mm_newline_position == newline
    with pytest.raises(CheckpointError, match="is a llava_onevision checkpoint and cannot be loaded as qwen2_vl"):
        load_pretrained(folder, family="qwen2_vl")


@pytest.mark.parametrize(("name", "layout"), [("llava_video", "original"), ("qwen2_vl", "hf")])
def test_device_maps_of_transformers(loaded, checkpoint, name, layout):
    _, model, processor = loaded(name, layout)
    for device_map in ("auto", "cpu", {"": "cpu"}):
        placed, _ = load_pretrained(checkpoint(name, layout), dtype=torch.float32, device_map=device_map)
        assert_same(answer(placed, processor), answer(model, processor))


@pytest.mark.parametrize(("name", "layout"), [("llava_video", "original"), ("qwen2_vl", "hf")])
@pytest.mark.parametrize(
    ("dtype", "computed"), [({}, "float32"), ({"dtype": "bfloat16"}, "bfloat16"), ({"dtype": torch.float16}, "float16")]
)
def test_four_bit_loading_reaches_transformers(checkpoint, monkeypatch, name, layout, dtype, computed):
    seen = {}

    def from_pretrained(*args, **kwargs):
        seen.update(kwargs)
        raise InterruptedError

    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", from_pretrained)
    with pytest.raises(InterruptedError):
        load_pretrained(checkpoint(name, layout), load_in_4bit=True, max_memory={"cpu": "1GB"}, **dtype)
    settings = seen["quantization_config"]
    assert (settings.load_in_4bit, settings.bnb_4bit_quant_type) == (True, "nf4")
    assert settings.bnb_4bit_compute_dtype == getattr(torch, computed)
    assert seen["max_memory"] == {"cpu": "1GB"}


def test_generation_stops_at_the_end_of_a_turn(loaded):
    for layout in ("original", "hf"):
        _, model, processor = loaded("llava_video", layout)
        end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
        assert end in torch.tensor(model.generation_config.eos_token_id).reshape(-1).tolist()


def test_sizes_of_the_published_tower(tmp_path):
    name = "google/siglip-so400m-patch14-384"
    tower = tower_config({"mm_vision_tower": name}, tmp_path)
    assert (tower.num_hidden_layers, tower.vision_use_head) == (KNOWN_TOWERS[name]["num_hidden_layers"] - 1, False)
    assert (tower.image_size // tower.patch_size) ** 2 == 729
    with pytest.raises(CheckpointError, match=r"vision_tower_config\.json.*Known: google/siglip"):
        tower_config({"mm_vision_tower": "./no-such-tower"}, tmp_path)


def test_configuration_of_a_published_checkpoint(tmp_path):
    """The fields of lmms-lab/LLaVA-Video-7B-Qwen2 as the design notes list them."""
    config = model_config(
        {
            "mm_vision_tower": "google/siglip-so400m-patch14-384",
            "hidden_size": 3584,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "intermediate_size": 18944,
            "vocab_size": 152064,
            "rope_theta": 1000000.0,
            "image_token_index": 151646,
            "image_grid_pinpoints": "(1x1),...,(6x6)",
            "image_aspect_ratio": "anyres_max_9",
            "torch_dtype": "bfloat16",
            "mm_newline_position": "grid",
        },
        tmp_path,
    )
    assert config.text_config.rope_parameters["rope_theta"] == 1e6
    assert config.dtype == torch.bfloat16
    assert config.mm_newline_position == "grid"
    assert len(config.image_grid_pinpoints) == 36
    assert config.image_grid_pinpoints[-1] == [2304, 2304]
    assert config.image_token_id == 151646


def test_grid_pinpoints():
    assert grid_pinpoints("(1x1),...,(2x2)", 10) == [[10, 10], [10, 20], [20, 10], [20, 20]]
    assert grid_pinpoints([(10, 20)], 10) == [[10, 20]]
    assert grid_pinpoints(None, 10) is None
    with pytest.raises(CheckpointError, match="image_grid_pinpoints 'all'"):
        grid_pinpoints("all", 10)


def test_a_model_written_in_the_original_layout_reads_back(loaded, tmp_path):
    _, model, processor = loaded("llava_onevision", "hf")
    save_original(model, processor, tmp_path)
    assert_same(answer(*load_pretrained(tmp_path)), answer(model, processor))
