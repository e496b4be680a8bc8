"""What of vLLM's source the plugin relies on: names and parameters, read without importing it.

Looks at the installed vLLM, or at the folder or wheel that ``VLLM_SOURCE`` names, so that a version
that does not run here can be looked at too.
"""

from __future__ import annotations

import ast
import os
import zipfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

PROCESSOR = ("mm_items", "hf_processor_mm_kwargs", "out_mm_kwargs")
PLACE = ("input_ids", "multimodal_embeddings", "mrope_positions", "num_computed_tokens")
MODELS = "model_executor/models"
USED = {
    f"{MODELS}/qwen2_vl.py": {
        "Qwen2VLMultiModalProcessor._get_prompt_updates": PROCESSOR,
        "Qwen2VLForConditionalGeneration._process_image_input": ("image_input",),
        "Qwen2VLForConditionalGeneration._process_video_input": ("video_input",),
        "Qwen2VLForConditionalGeneration.get_mrope_input_positions": ("input_tokens", "mm_features"),
        "Qwen2VLForConditionalGeneration.get_encoder_cudagraph_config": (),
    },
    f"{MODELS}/qwen2_5_vl.py": {
        "Qwen2_5_VLMultiModalProcessor._get_prompt_updates": PROCESSOR,
        "Qwen2_5_VLForConditionalGeneration._process_video_input": ("video_input",),
        "Qwen2_5_VLForConditionalGeneration.recompute_mrope_positions": PLACE,
    },
    f"{MODELS}/qwen3_vl.py": {
        "Qwen3VLMultiModalProcessor._get_prompt_updates": PROCESSOR,
        "Qwen3VLMultiModalProcessor.get_video_repl": (
            *("tokens_per_frame", "timestamps", "tokenizer", "vision_start_token_id", "vision_end_token_id"),
            *("video_token_id", "select_token_id"),
        ),
        "Qwen3VLForConditionalGeneration._process_video_input": ("video_input",),
        "Qwen3VLForConditionalGeneration._create_final_video_embeddings": (
            *("video_embeddings", "num_tokens_per_frame", "timestamps", "video_grid_thw", "retention_mask"),
        ),
        "Qwen3VLForConditionalGeneration.recompute_mrope_positions": PLACE,
    },
    f"{MODELS}/llava_onevision.py": {
        "LlavaOnevisionMultiModalProcessor._get_prompt_updates": PROCESSOR,
        "LlavaOnevisionForConditionalGeneration._process_video_pixels": ("inputs",),
    },
    "multimodal/hasher.py": {"MultiModalHasher.hash_kwargs": ()},
    "multimodal/processing/processor.py": {"BaseMultiModalProcessor._get_mm_hashes": ("inputs",)},
    "config/multimodal.py": {"MultiModalConfig.is_multimodal_pruning_enabled": ()},
    "plugins/__init__.py": {"load_general_plugins": ()},
}


def source() -> Path | None:
    """The folder, or the wheel."""
    if named := os.environ.get("VLLM_SOURCE"):
        return Path(named)
    found = find_spec("vllm")
    return Path(found.origin).parent if found is not None and found.origin else None


pytestmark = pytest.mark.skipif(source() is None, reason="there is no vLLM to look at")


@cache
def read(file: str) -> str:
    root = source()
    assert root is not None
    if root.suffix == ".whl":
        with zipfile.ZipFile(root) as wheel:
            return wheel.read(f"vllm/{file}").decode()
    return (root / file).read_text()


def parameters(file: str, name: str) -> list[str] | None:
    """Parameters of a function or ``Class.method``; None if it is not there."""
    scope: ast.AST = ast.parse(read(file))
    for part in name.split("."):
        inside = (node for node in ast.iter_child_nodes(scope) if getattr(node, "name", None) == part)
        if (found := next(inside, None)) is None:
            return None
        scope = found
    assert isinstance(scope, (ast.FunctionDef, ast.AsyncFunctionDef))
    return [argument.arg for argument in (*scope.args.posonlyargs, *scope.args.args, *scope.args.kwonlyargs)]


@pytest.mark.parametrize(("file", "name"), [(file, name) for file, names in USED.items() for name in names])
def test_what_is_overridden_or_called_is_there_with_its_parameters(file, name):
    found = parameters(file, name)
    assert found is not None, f"{file} has no {name}"
    assert set(USED[file][name]) <= set(found)


@pytest.mark.parametrize("field", ["video_grid_thw", "timestamps", "second_per_grid_ts"])
def test_the_fields_of_a_video_are_named_as_we_read_them(field):
    assert any(field in read(f"{MODELS}/{name}.py") for name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"))


def test_qwen3_still_ends_its_rows_with_five_channels_of_positions():
    """``filled[:, :-5]`` in our ``qwen.py`` takes them off."""
    assert "mm_embeddings_out.append(mm[:, :-5])" in read(f"{MODELS}/qwen3_vl.py")


def test_the_runner_asks_for_the_attribute_that_we_set():
    assert "is_multimodal_pruning_enabled" in read("v1/worker/gpu_model_runner.py")
    assert "supports_multimodal_pruning" in read(f"{MODELS}/interfaces.py")
