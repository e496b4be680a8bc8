"""Time to first token of a language model, with its weights and with others of its shape."""

from __future__ import annotations

import json

import pytest
from bench_prefill import main
from transformers import LlamaConfig, LlamaForCausalLM


@pytest.mark.parametrize("more", [[], ["--random"]])
def test_a_language_model(tmp_path, more):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    LlamaForCausalLM(LlamaConfig(num_hidden_layers=3, vocab_size=64, **sizes)).save_pretrained(tmp_path / "model")
    short = ["--frames", "2", "--budgets", "0.5", "--start-layers", "1", "--repeats", "1", "--warmup", "0"]
    main(["--model", str(tmp_path / "model"), *more, *short, "--device", "cpu", "--out", str(tmp_path)])
    result = json.loads((tmp_path / "model-cpu.json").read_text())
    assert {key: result["about"][key] for key in ("hidden", "layers", "kv_heads")} == {
        "hidden": 32,
        "layers": 3,
        "kv_heads": 2,
    }
    full, reduced = result["rows"]
    assert full["visual_tokens"] == 2 * 196
    assert reduced["visual_tokens"] <= 196
    assert reduced["ideal_speedup"] > 1
