"""Which part of a model lies on which device, as ``device_map="auto"`` will decide."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

from sttm_lmms.errors import STTMError
from sttm_lmms.runtime.memory import GIB, ModelSizes, Part, whole

_LAYER = re.compile(r"language_model\.layers\.(\d+)\.")
_TOWER = re.compile(r"\bvis(?:ion|ual)")


def spread(model: Any, sizes: ModelSizes, gpus: int, gpu_bytes: int) -> dict[str, Part]:
    """The parts of ``model`` (on the meta device) on each of ``gpus`` devices with ``gpu_bytes`` each.

    Raises:
        STTMError: the weights alone do not fit; transformers would put the rest into host memory or on disk.
    """
    if gpus == 1:
        return {"cuda:0": whole(sizes)}
    from transformers.integrations.accelerate import get_balanced_memory, infer_auto_device_map

    no_split = set(getattr(model, "_no_split_modules", None) or ())
    memory = get_balanced_memory(
        model, max_memory=dict.fromkeys(range(gpus), gpu_bytes), no_split_module_classes=no_split
    )
    places = infer_auto_device_map(model, max_memory=memory, no_split_module_classes=no_split)
    if elsewhere := sorted({str(place) for place in places.values() if not isinstance(place, int)}):
        raise STTMError(
            f"{sizes.weights / GIB:.0f} GiB of weights do not fit on {gpus} GPUs of {gpu_bytes / GIB:.0f} GiB: "
            f"device_map=auto would put modules on {' and '.join(elsewhere)}, which is slow; use more GPUs, or "
            "load_in_4bit=True"
        )
    return _parts(model, sizes, {name: f"cuda:{place}" for name, place in places.items()}, gpus)


def _parts(model: Any, sizes: ModelSizes, places: dict[str, str], gpus: int) -> dict[str, Part]:
    weights: dict[str, int] = defaultdict(int)
    layers: dict[str, set[int]] = defaultdict(set)
    towers, embeddings = set(), set()
    for name, parameter in model.named_parameters():
        device = _place(name, places)
        weights[device] += parameter.numel() * sizes.itemsize
        if found := _LAYER.search(name):
            layers[device].add(int(found.group(1)))
        elif _TOWER.search(name):
            towers.add(device)
        elif "embed_tokens" in name:
            embeddings.add(device)
    devices = [f"cuda:{number}" for number in range(gpus)]
    return {d: Part(weights[d], frozenset(layers[d]), d in towers, d in embeddings) for d in devices}


def _place(name: str, places: dict[str, str]) -> str:
    """The device of a parameter: that of the longest module name it begins with."""
    while name not in places and name:
        name = name.rpartition(".")[0]
    return places[name]
