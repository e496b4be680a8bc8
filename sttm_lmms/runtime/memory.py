"""How much device memory a run needs, known before it starts.

Weights, KV cache and stored features are exact, the widest decoder layer of the prefill is one
product, and everything else (vision tower, merging, CUDA context, fragmentation) is an allowance of
20%. Sizes are bytes; GiB = 2**30 bytes.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from sttm_lmms.config import check_integer
from sttm_lmms.decoder import RECURRENT
from sttm_lmms.errors import STTMError

GIB = 2**30
ALLOWANCE = 0.2
"""Share of what is counted that is added for what is not."""

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
_TOWER = re.compile(r"\bvis(?:ion|ual)")


@dataclass(frozen=True)
class Workload:
    """One video and what is done with it.

    Attributes:
        grid: (T, H, W) of the visual tokens.
        kept: share of the visual tokens that remains from ``start_layer`` on.
        start_layer: decoder layer in front of which tokens are merged.
        text_tokens, new_tokens: of the prompt around the video (newline tokens count as text), and
            of the answer.
        batch_size: questions (times beams) answered together; a batch copies the KV of its video
            for each row.
        keep: videos whose KV and features are held.
        eager: attention with a full matrix.

    Raises:
        ValueError: a count is below 1, or ``kept`` is outside of (0, 1].
    """

    grid: tuple[int, int, int]
    kept: float = 1.0
    start_layer: int = 2
    text_tokens: int = 256
    new_tokens: int = 32
    batch_size: int = 1
    keep: int = 1
    eager: bool = False

    def __post_init__(self) -> None:
        for name, value in (("batch_size", self.batch_size), ("keep", self.keep), ("frames", self.grid[0])):
            check_integer(name, value, 1)
        if not 0 < self.kept <= 1:
            raise ValueError(f"kept={self.kept!r} is out of range; it must be in (0, 1]")

    @property
    def visual(self) -> int:
        """Visual tokens before merging."""
        t, h, w = self.grid
        return t * h * w

    def prompt(self, layer: int) -> int:
        """Tokens of the prompt in a decoder layer."""
        return self.text_tokens + (self.visual if layer < self.start_layer else round(self.visual * self.kept))


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device: parameters, keys and values, visual embeddings that questions share, and
    the widest moment of a decoder layer."""

    weights: int = 0
    kv: int = 0
    features: int = 0
    activations: int = 0

    @property
    def allowance(self) -> int:
        """What is not counted."""
        return round(ALLOWANCE * (self.weights + self.kv + self.features + self.activations))

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.kv + self.features + self.activations + self.allowance


def estimate_memory(
    model: nn.Module,
    work: Workload,
    *,
    itemsize: int | None = None,
    four_bit: bool = False,
    places: Mapping[str, str] | None = None,
) -> dict[str, MemoryEstimate]:
    """What each device needs for ``work``.

    Args:
        model: a transformers model, which may be on the meta device.
        itemsize: bytes of a value, of weights, activations and KV; by default the model's own.
        four_bit: linear layers are quantised by bitsandbytes: 4 bits, and a float32 for each 64
            values.
        places: module name -> device, as :func:`spread` gives; None puts everything on ``cuda:0``.
    """
    config: Any = model.config
    text, places = config.get_text_config(), places or {"": "cuda:0"}
    value = itemsize or next(model.parameters()).element_size()
    packed = {
        id(m.weight) for n, m in model.named_modules() if four_bit and isinstance(m, nn.Linear) and n != "lm_head"
    }
    weights: dict[str, int] = defaultdict(int)
    layers: dict[str, set[int]] = defaultdict(set)
    embedding = ""
    for name, parameter in model.named_parameters():  # tied ones come once
        device = _place(name, places)
        weights[device] += int(parameter.numel() * (4.5 / 8 if id(parameter) in packed else value))
        if "embed_tokens" in name:
            embedding = device
        elif (found := _LAYER.search(name)) and not _TOWER.search(name):
            layers[device].add(int(found.group(1)))
    return {
        device: MemoryEstimate(
            weights=weights[device],
            kv=kv_bytes(text, work, layers[device], value),
            features=feature_bytes(config, work, value) if device == embedding else 0,
            activations=max((activation_bytes(text, work, n, value) for n in layers[device]), default=0),
        )
        for device in sorted(weights)
    }


def kv_bytes(text: Any, work: Workload, layers: set[int], value: int) -> int:
    """KV of some decoder layers: of the videos that are held, their copies in a batch, and the
    questions under way."""
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    token = 2 * text.num_key_value_heads * head * value
    copies = work.keep + (work.batch_size if work.batch_size > 1 else 0)
    kinds = getattr(text, "layer_types", None) or []
    recurrent = {layer for layer in layers if layer < len(kinds) and kinds[layer] == RECURRENT}
    growing = layers - recurrent
    prompts = sum(work.prompt(layer) for layer in growing)
    keys_values = token * (copies * prompts + work.batch_size * len(growing) * (work.text_tokens + work.new_tokens))
    states = _state_bytes(text, value) if recurrent else 0
    return keys_values + (work.keep + work.batch_size) * len(recurrent) * states


def _state_bytes(text: Any, value: int) -> int:
    """Of a gated delta net, whatever the length of the sequence: the inputs of its convolution, and in
    float32 a matrix for each head."""
    keys = text.linear_num_key_heads * text.linear_key_head_dim
    values = text.linear_num_value_heads * text.linear_value_head_dim
    return (2 * keys + values) * text.linear_conv_kernel_dim * value + 4 * values * text.linear_key_head_dim


def feature_bytes(config: Any, work: Workload, value: int) -> int:
    """Embeddings of the videos that are held and of the prompt, with those of deepstack layers
    (Qwen3-VL)."""
    deepstack = len(getattr(config.vision_config, "deepstack_visual_indexes", ()))
    visual = (work.keep + 1) * (1 + deepstack) * work.visual
    return (visual + work.text_tokens) * config.get_text_config().hidden_size * value


def activation_bytes(text: Any, work: Workload, layer: int, value: int) -> int:
    """Widest moment of a decoder layer: three tensors of the states' width and three of the
    MLP's."""
    tokens = work.prompt(layer)
    matrix = text.num_attention_heads * tokens * tokens * (value + 4) if work.eager else 0
    # A mixture of experts alone has no MLP that all tokens pass.
    mlp = getattr(text, "intermediate_size", None) or text.num_experts_per_tok * text.moe_intermediate_size
    return 3 * (text.hidden_size + mlp) * tokens * value + matrix


def spread(model: Any, gpus: int, gpu_bytes: int) -> dict[str, str]:
    """Module name -> device, as ``device_map="auto"`` will put ``model`` on ``gpus`` devices.

    Raises:
        STTMError: the weights alone do not fit; transformers would put the rest into host memory or
            on disk.
    """
    if gpus == 1:
        return {"": "cuda:0"}
    from transformers.integrations.accelerate import get_balanced_memory, infer_auto_device_map

    no_split = set(getattr(model, "_no_split_modules", None) or ())
    room = get_balanced_memory(
        model, max_memory=dict.fromkeys(range(gpus), gpu_bytes), no_split_module_classes=no_split
    )
    places = infer_auto_device_map(model, max_memory=room, no_split_module_classes=no_split)
    if elsewhere := sorted({str(place) for place in places.values() if not isinstance(place, int)}):
        raise STTMError(
            f"the weights do not fit on {gpus} GPUs of {gpu_bytes / GIB:.0f} GiB: device_map=auto would put modules "
            f"on {' and '.join(elsewhere)}, which is slow; use more GPUs, or load_in_4bit=True"
        )
    return {name: f"cuda:{place}" for name, place in places.items()}


def _place(name: str, places: Mapping[str, str]) -> str:
    """The device of a parameter: that of the longest module name it begins with."""
    while name not in places and name:
        name = name.rpartition(".")[0]
    return places[name]


def most_frames(need: Callable[[int], int], limit: int, frames: int) -> int | None:
    """The largest number up to ``frames`` of which ``need`` stays within ``limit`` bytes; None if 1
    does not."""
    return bisect_right(range(1, frames + 1), limit, key=need) or None


def suggest_settings(
    *,
    batch_size: int = 1,
    keep: int = 1,
    host_cache_gb: float = 0.0,
    eager: bool = False,
    frames: int | None = None,
    reduced: bool = False,
) -> str:
    """Which settings make a run smaller, the ones that cost no answer first. ``frames`` is the
    limit now."""
    ways = []
    if batch_size > 1:
        ways.append(f"batch_size (now {batch_size})")
    if keep > 1:
        ways.append(f"keep (now {keep}; host_cache_gb holds older prefixes in host memory)")
    if host_cache_gb:
        ways.append(f"host_cache_gb (now {host_cache_gb:g}) if it is the host that is full")
    if eager:
        ways.append("attn_implementation (now eager; sdpa holds no attention matrix)")
    ways.append("max_frames" if frames is None else f"max_frames (now {frames})")
    ways.append("budget" if reduced else "the tokens that are kept (budget=0.5)")
    return " or ".join(ways)
