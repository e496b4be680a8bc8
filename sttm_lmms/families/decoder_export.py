"""The decoder of a LLaVA checkpoint as a plain Qwen2 checkpoint, which servers of text models load.

Tensors keep their values. Files that hold the decoder alone, under its plain names, are hard links
to the original ones; the others are written anew, one at a time, so that memory never holds more
than one file.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file

from sttm_lmms.errors import CheckpointError
from sttm_lmms.families import lmms_lab
from sttm_lmms.families.checkpoint import read_headers, read_json

# Names of the decoder's tensors in the original layout and in both Hugging Face layouts -> their
# plain names.
_PLAIN = (
    (re.compile(r"^(?:model\.language_model|language_model\.model)\.(layers|embed_tokens|norm)\."), r"model.\1."),
    (re.compile(r"^model\.(layers|embed_tokens|norm)\."), r"model.\1."),
    (re.compile(r"^(?:language_model\.)?lm_head\."), "lm_head."),
)
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json")
_FILES = (*_TOKENIZER, "special_tokens_map.json")
_INDEX, _CONFIG, _DONE = "model.safetensors.index.json", "config.json", "exported.json"


def plain_name(name: str) -> str | None:
    """The name of a tensor in a plain Qwen2 checkpoint; None if it is not the decoder's."""
    for pattern, plain in _PLAIN:
        if pattern.match(name):
            return pattern.sub(plain, name)
    return None


def export_decoder(checkpoint: Path, out: Path) -> Path:
    """Write the decoder of ``checkpoint`` into ``out``, unless it is there already.

    Args:
        checkpoint: folder of a LLaVA-Video or LLaVA-OneVision checkpoint with a Qwen2 decoder, in
            any layout.
        out: folder to write; created if need be. It counts as finished when ``exported.json``
            describes the files that were read, as they are now, and all that were written are
            there; else what an earlier export wrote goes.

    Returns:
        ``out``.

    Raises:
        CheckpointError: another architecture, no decoder, or broken files.
    """
    if out.resolve() == checkpoint.resolve():
        raise CheckpointError(f"{out} is the checkpoint itself; give another folder")
    config = decoder_config(checkpoint)
    headers = read_headers(checkpoint)
    weights = sorted({header.file for header in headers.values()})
    copied = [name for name in _FILES if (checkpoint / name).is_file()]
    # The configuration by its content: it is derived from several files, by a rule that may change.
    made_from = {"config": config, "files": {file: _stamp(checkpoint / file) for file in (*weights, *copied)}}
    if _is_finished(out, made_from):
        return out
    out.mkdir(parents=True, exist_ok=True)
    written = [*weights, _INDEX, _CONFIG, *copied]
    _clear(out, written)
    weight_map: dict[str, str] = {}
    for file in weights:
        inside = [name for name, header in headers.items() if header.file == file]
        plain = {name: new for name in inside if (new := plain_name(name)) is not None}
        if not plain:
            continue
        weight_map |= dict.fromkeys(plain.values(), file)
        if list(plain.values()) == inside:
            _link(checkpoint / file, out / file)
        else:
            _write(checkpoint / file, out / file, plain)
    if not any(name.startswith("model.layers.") for name in weight_map):
        raise CheckpointError(f"{checkpoint} holds no decoder layers under any known name")
    (out / _INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}, indent=1))
    (out / _CONFIG).write_text(json.dumps(config, indent=1) + "\n")
    for name in copied:
        _link(checkpoint / name, out / name)
    written = [*dict.fromkeys(weight_map.values()), _INDEX, _CONFIG, *copied]
    (out / _DONE).write_text(json.dumps({**made_from, "written": written}, indent=1) + "\n")
    return out


def _is_finished(out: Path, made_from: dict[str, Any]) -> bool:
    """Whether ``out`` holds a whole export of just this."""
    if not (out / _DONE).is_file():
        return False
    done = read_json(out / _DONE)
    written = done.pop("written", [_DONE])
    return done == json.loads(json.dumps(made_from)) and all((out / name).is_file() for name in written)


def _clear(out: Path, written: list[str]) -> None:
    """Remove what an earlier export left in ``out``, and note what this one is going to write.

    Raises:
        CheckpointError: weights that no export wrote, which would be loaded in place of ours.
    """
    if (out / _DONE).is_file():
        earlier = read_json(out / _DONE)
        for name in earlier.get("written", [*earlier, _INDEX, _CONFIG, *_FILES]):
            (out / name).unlink(missing_ok=True)
    if foreign := sorted({file.name for file in out.glob("*.safetensors")} - set(written)):
        raise CheckpointError(
            f"{out} holds {foreign[0]}, which no export wrote; give another folder, or empty this one"
        )
    (out / _DONE).write_text(json.dumps({"written": written}) + "\n")


def decoder_config(checkpoint: Path) -> dict[str, object]:
    """``config.json`` of the plain checkpoint. Raises ``CheckpointError`` for anything but a Qwen2
    LLaVA checkpoint."""
    config = read_json(checkpoint / _CONFIG)
    names = [str(name) for name in config.get("architectures") or ()]
    if lmms_lab.ARCHITECTURE in names:
        loaded: Any = lmms_lab.model_config(config, checkpoint)
        text = loaded.text_config.to_dict()
    elif "LlavaOnevisionForConditionalGeneration" in names:
        text = dict(config.get("text_config") or {})
    else:
        raise CheckpointError(
            f"{checkpoint}/config.json: the decoder of {names} cannot be exported, only that of LLaVA-Video and "
            "LLaVA-OneVision: servers treat embedded prompts as text, whose positions are not those of M-RoPE"
        )
    if text.get("model_type", "qwen2") != "qwen2":
        raise CheckpointError(
            f"{checkpoint}/config.json: a {text['model_type']} decoder cannot be exported, only qwen2"
        )
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
    dtype = config.get("torch_dtype") or config.get("dtype") or text.get("dtype") or "float32"
    return {
        **text,
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "tie_word_embeddings": bool(tied),
        "dtype": str(dtype).removeprefix("torch."),
    }


def _stamp(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]


def _link(source: Path, target: Path) -> None:
    """A hard link to the file itself (a hub's folder holds symbolic links), or a copy on another
    file system."""
    target.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def _write(source: Path, target: Path, plain: dict[str, str]) -> None:
    """The tensors ``plain`` of a file under their new names; complete or not there at all."""
    with safe_open(source, framework="pt") as tensors:
        kept = {new: tensors.get_tensor(name) for name, new in plain.items()}
    partial = target.with_name(target.name + ".part")
    save_file(kept, partial, metadata={"format": "pt"})
    partial.replace(target)
