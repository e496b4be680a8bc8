"""How much memory a run needs on its device, told before it starts: pure functions of sizes.

One model for ``sttm-lmms rehearse``, ``sttm-lmms doctor`` and the advice after an out-of-memory error. Weights and KV
are exact. What lives only for a moment is an upper estimate, term by term from what the code holds at that point; the
tests measure it on small models. Sizes are bytes; GiB = 2**30 bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from sttm_lmms.config import check_integer

GIB = 2**30
ALLOWANCE = GIB
"""For each device: CUDA context, library workspaces, fragmentation. An allowance, not a measurement."""

MERGING = 1.5
"""Most extra memory of merging, in multiples of the visual tokens' hidden states; guarded by tests of the merging."""


@dataclass(frozen=True)
class VisionSizes:
    """A vision tower. A step is a frame (LLaVA) or a pair of frames (Qwen2-VL).

    Attributes:
        hidden, intermediate, layers: of the tower.
        pixels: values that a patch is made of.
        patches: patches of a step, where that is fixed; None where a token stands for ``patches_per_token`` of them.
        at_once: steps that go through the tower together. Bounds its memory however long the video is.
        keeps_states: the states of all layers are returned (LLaVA takes the one before the last).
    """

    hidden: int
    intermediate: int
    layers: int
    pixels: int
    patches: int | None
    patches_per_token: int = 4
    at_once: int = 16
    keeps_states: bool = False


@dataclass(frozen=True)
class ModelSizes:
    """A model, as far as memory depends on it.

    Attributes:
        weights: bytes of all parameters.
        itemsize: bytes of a value, of activations and KV.
        layers, hidden, intermediate, heads, kv_heads, head_dim, vocab: of the decoder.
        vision: the tower; None if features are stored and it never runs.
        deepstack: vision layers whose features a visual token carries beside its embedding (Qwen3-VL).
    """

    weights: int
    itemsize: int
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    vision: VisionSizes | None = None
    deepstack: int = 0

    @property
    def features(self) -> int:
        """Channels of the stored features of a visual token."""
        return (1 + self.deepstack) * self.hidden


@dataclass(frozen=True)
class Work:
    """One video and what is done with it.

    Attributes:
        grid: (T, H, W) of the visual tokens, T in steps of the tower.
        kept: share of the visual tokens that remains from ``start_layer`` on.
        start_layer: decoder layer in front of which tokens are merged.
        text_tokens, new_tokens: of the prompt around the video, and of the answer.
        extra_tokens: newline tokens.
        batch_size: questions (times beams) answered together.
        keep: videos whose prefix and features are held.
        eager: attention with a full matrix.

    Raises:
        ValueError: a count is below 1, or ``kept`` is outside of (0, 1].
    """

    grid: tuple[int, int, int]
    kept: float = 1.0
    start_layer: int = 2
    text_tokens: int = 256
    new_tokens: int = 32
    extra_tokens: int = 0
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
        """Visual tokens before merging, newlines not counted."""
        t, h, w = self.grid
        return t * h * w

    @property
    def full(self) -> int:
        """Tokens of the prompt in layers below ``start_layer``."""
        return self.visual + self.extra_tokens + self.text_tokens

    @property
    def short(self) -> int:
        """Tokens of the prompt in the other layers."""
        return round(self.visual * self.kept) + self.extra_tokens + self.text_tokens


@dataclass(frozen=True)
class Needs:
    """Bytes on one device.

    ``weights``, ``kv`` and ``features`` (visual embeddings that questions share) are held; ``vision``, ``merging`` and
    ``activations`` (decoder layers of the prefill) are peaks that come one after the other.
    """

    weights: int = 0
    kv: int = 0
    features: int = 0
    vision: int = 0
    merging: int = 0
    activations: int = 0
    allowance: int = ALLOWANCE

    @property
    def total(self) -> int:
        peak = max(self.vision, self.merging, self.activations)
        return self.weights + self.kv + self.features + peak + self.allowance


@dataclass(frozen=True)
class Part:
    """What of a model lies on one device: bytes of weights, decoder layers, whether the tower and the embedding."""

    weights: int
    layers: frozenset[int]
    vision: bool = True
    embedding: bool = True


def whole(sizes: ModelSizes) -> Part:
    """All of a model on one device."""
    return Part(sizes.weights, frozenset(range(sizes.layers)))


def predict(sizes: ModelSizes, work: Work, part: Part | None = None) -> Needs:
    """What a device needs for ``work``; for the whole model, or for the part of it that lies there."""
    part = part or whole(sizes)
    value = sizes.itemsize
    long = [layer for layer in part.layers if layer < work.start_layer]
    deep = [layer for layer in part.layers if layer >= work.start_layer]
    lengths = work.full * bool(long), work.short * bool(deep)
    features = 0
    if part.embedding:  # of the videos that are held, and of the prompt: embeddings and deepstack layers
        prompt = work.full * sizes.hidden + work.visual * sizes.deepstack * sizes.hidden
        features = (work.keep * work.visual * sizes.features + prompt) * value
    merges = work.kept < 1 and work.start_layer in part.layers
    return Needs(
        weights=part.weights,
        kv=kv_bytes(sizes, work, len(long), len(deep)),
        features=features,
        vision=vision_bytes(sizes, work) if part.vision else 0,
        merging=merging_bytes(sizes, work) if merges else 0,
        activations=activation_bytes(sizes, max(lengths), eager=work.eager),
    )


def prefix_kv_bytes(sizes: ModelSizes, work: Work, long: int, deep: int) -> int:
    """KV of a prompt in ``long`` layers below the start layer and ``deep`` others. Exact."""
    token = 2 * sizes.kv_heads * sizes.head_dim * sizes.itemsize
    return token * (long * work.full + deep * work.short)


def kv_bytes(sizes: ModelSizes, work: Work, long: int, deep: int) -> int:
    """KV of all prefixes that are held, and of the questions under way: a batch copies its prefix for each row."""
    token = 2 * sizes.kv_heads * sizes.head_dim * sizes.itemsize * (long + deep)
    prefix = prefix_kv_bytes(sizes, work, long, deep)
    rows = work.batch_size if work.batch_size > 1 else 0
    return prefix * (work.keep + rows) + work.batch_size * token * (work.text_tokens + work.new_tokens)


def activation_bytes(sizes: ModelSizes, tokens: int, *, eager: bool = False) -> int:
    """Peak of one decoder layer over ``tokens`` tokens: its input, residual and normed states with the widest of MLP
    (three of its width), norm (two copies in float32) and attention (queries, rotated, expanded keys and values)."""
    value, c = sizes.itemsize, sizes.hidden
    inner = sizes.heads * sizes.head_dim
    mlp = (3 * c + 3 * sizes.intermediate) * value
    norm = c * (3 * value + 2 * 4)
    attention = (3 * c + 6 * inner + 4 * sizes.kv_heads * sizes.head_dim) * value
    rotary = 8 * sizes.head_dim * value  # cosines and sines, three axes of them in M-RoPE
    matrix = sizes.heads * tokens * tokens * (value + 4) if eager else 0
    return tokens * (max(mlp, norm, attention) + rotary) + matrix


def merging_bytes(sizes: ModelSizes, work: Work) -> int:
    """Peak of merging: both sequences, and the extra memory of the merging itself."""
    states = sizes.hidden * sizes.itemsize
    return int(states * (work.full + work.short + MERGING * work.visual))


def vision_bytes(sizes: ModelSizes, work: Work) -> int:
    """Peak of the vision side of one video: frames in chunks of ``at_once`` steps, of which only the output is kept."""
    tower, value = sizes.vision, sizes.itemsize
    if tower is None:
        return 0
    t, h, w = work.grid
    patches = tower.patches or h * w * tower.patches_per_token
    chunk = min(tower.at_once, t) * patches
    states = chunk * tower.hidden * ((tower.layers + 1) if tower.keeps_states else 2)
    layer = chunk * max(2 * tower.intermediate + 2 * tower.hidden, 8 * tower.hidden)
    pixels = chunk * tower.pixels * (4 + value)  # as they come, in float32, and in the tower's dtype
    if tower.patches is None:  # the merger ends in the decoder's channels; the parts and their concatenation
        return pixels + value * (states + layer + 2 * work.visual * sizes.features)
    output = t * patches * tower.hidden
    seen = pixels + value * (states + layer + 2 * output)
    projected = value * (output + 2 * work.visual * sizes.hidden + 4 * chunk * sizes.hidden)
    return max(seen, projected)


def largest_fit(sizes: ModelSizes, work: Work, limit: int) -> int | None:
    """Most steps of ``work``'s grid with which the whole model fits into ``limit`` bytes; None if not even one does."""
    low, high = 0, work.grid[0]
    while low < high:
        middle = (low + high + 1) // 2
        fits = predict(sizes, replace(work, grid=(middle, *work.grid[1:]))).total <= limit
        low, high = (middle, high) if fits else (low, middle - 1)
    return low or None


def ways_out(work: Work, *, host_cache_gb: float = 0.0, frames: int | None = None) -> list[str]:
    """Which settings make a run smaller, the ones that cost no answer first. ``frames`` is the limit now."""
    ways = []
    if work.batch_size > 1:
        ways.append(f"batch_size (now {work.batch_size})")
    if work.keep > 1:
        ways.append(f"keep (now {work.keep}; host_cache_gb holds older prefixes in host memory)")
    if host_cache_gb:
        ways.append(f"host_cache_gb (now {host_cache_gb:g}) if it is the host that is full")
    if work.eager:
        ways.append("attn_implementation (now eager; sdpa holds no attention matrix)")
    ways.append("max_frames" if frames is None else f"max_frames (now {frames})")
    ways.append("budget" if work.kept < 1 else "the tokens that are kept (budget=0.5)")
    return ways


def sizes_of(
    model: nn.Module, itemsize: int | None = None, *, vision: bool = True, four_bit: bool = False
) -> ModelSizes:
    """Sizes of a transformers model, which may be on the meta device.

    Args:
        itemsize: bytes of a value; by default the model's own.
        four_bit: linear layers are quantised by bitsandbytes: 4 bits, and a float32 for each 64 values.
        vision: False if features are stored and the tower is not run.
    """
    config: Any = model.config
    text = config.get_text_config()
    own = itemsize or next(model.parameters()).element_size()
    parameters = {id(p): p.numel() for p in model.parameters()}  # tied ones count once
    linear = {id(m.weight) for name, m in model.named_modules() if isinstance(m, nn.Linear) and name != "lm_head"}
    packed = sum(parameters[key] for key in linear & parameters.keys()) if four_bit else 0
    return ModelSizes(
        weights=(sum(parameters.values()) - packed) * own + int(packed * 4.5 / 8),
        itemsize=own,
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        vocab=text.vocab_size,
        vision=_vision_sizes(config.vision_config) if vision else None,
        deepstack=len(getattr(config.vision_config, "deepstack_visual_indexes", ())),
    )


def _vision_sizes(tower: Any) -> VisionSizes:
    if hasattr(tower, "spatial_merge_size"):  # the Qwen2-VL kind: as many patches as the frame has
        return VisionSizes(
            hidden=tower.embed_dim if hasattr(tower, "embed_dim") else tower.hidden_size,
            intermediate=_intermediate(tower),
            layers=tower.depth,
            pixels=tower.in_channels * tower.temporal_patch_size * _side(tower.patch_size) ** 2,
            patches=None,
            patches_per_token=tower.spatial_merge_size**2,
        )
    return VisionSizes(
        hidden=tower.hidden_size,
        intermediate=_intermediate(tower),
        layers=tower.num_hidden_layers,
        pixels=tower.num_channels * _side(tower.patch_size) ** 2,
        patches=(_side(tower.image_size) // _side(tower.patch_size)) ** 2,
        keeps_states=True,
    )


def _side(size: Any) -> int:
    """Side of a square that a configuration gives as one number or as two."""
    return int(size[0] if isinstance(size, (list, tuple)) else size)


def _intermediate(tower: Any) -> int:
    own = getattr(tower, "intermediate_size", None)
    return int(own or tower.embed_dim * tower.mlp_ratio)


def table(needs: Mapping[str, Needs]) -> list[tuple[str, ...]]:
    """Rows of text: a header, then GiB of each kind for each device."""
    names = ("weights", "kv", "features", "vision", "merging", "activations", "allowance", "total")
    rows: list[tuple[str, ...]] = [("GiB", *names)]
    for device, need in needs.items():
        rows.append((device, *(f"{getattr(need, name) / GIB:.2f}" for name in names)))
    return rows
