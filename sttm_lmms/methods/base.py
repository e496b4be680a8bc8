"""The interface of a reduction method: one frozen dataclass that is settings and algorithm at
once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, get_args

import torch

from sttm_lmms.config import check_choice, check_integer, check_number
from sttm_lmms.errors import unknown
from sttm_lmms.types import Kept, Tokens

DecodePositions = Literal["continue", "reference"]
Site = Literal["layer", "mlp", "attention"]
State = dict[str, Any]
"""Per-video state of a method: an empty dict at the first stage of a prefill, the same one at all
later stages and decode steps of that video."""
Scratch = State
"""What methods written before the rename import."""


class Stage(NamedTuple):
    """Where a method acts: in front of ``layer``, or inside of it.

    ``site`` is ``"layer"`` (the residual stream in front of the layer), ``"mlp"`` (the residual
    stream between the layer's attention and its MLP) or ``"attention"`` (the normed input of the
    layer's attention; the residual stream goes on with the survivors' own rows).
    """

    layer: int
    site: Site = "layer"


class Probe(Protocol):
    """What a method that reads attention may ask. Only what is asked for is computed."""

    def attention(self, queries: Sequence[int] = (-1,)) -> torch.Tensor:
        """``[len(queries), N]`` float32: attention weights of sequence positions (negative: from
        the end) on the video's tokens, softmax over all keys that a query sees, averaged over
        heads. Of the layer before a stage in front of a layer, and of the layer itself for a stage
        in front of its MLP."""

    @property
    def layers(self) -> int:
        """Number of decoder layers."""


class CacheView(Protocol):
    """The KV cache of one sequence at a decode step, for methods that edit it."""

    layer: int
    """The decoder layer in front of which the method is called; 0 is before the decoder."""
    layers: int
    """Number of decoder layers."""
    prompt_tokens: int
    """Tokens of the prompt before any reduction."""
    video: range
    """The entries of the video in layers from the reduction on, after reduction."""
    visual_tokens: int
    """Visual tokens before reduction."""

    def length(self, layer: int) -> int:
        """Entries of a layer, without the token that this step adds."""

    def attention(self) -> torch.Tensor:
        """``[length + 1]`` float32: attention of the new token over all entries (its own is the
        last) in the layer before :attr:`layer`, averaged over heads."""

    def keep(self, layer: int, index: torch.Tensor) -> None:
        """Drop all entries of ``layer`` but ``index`` (ascending) for good."""

    def rotate(self, layer: int, entries: slice, steps: int) -> None:
        """Turn the keys of ``entries`` to rotary positions that are larger by ``steps``."""

    def attend(self, layer: int, index: torch.Tensor) -> None:
        """In this step ``layer`` sees only the entries ``index``; ``length`` stands for the new
        token itself."""


@dataclass(frozen=True)
class Method:
    """Base of all reduction methods. A subclass is registered with
    :func:`~sttm_lmms.methods.register_method`.

    Class attributes:
        reads: ``"features"``, or ``"attention"`` for a method that asks the probe. Attention
            depends on the question, so such a method never shares a prefix between questions.
        positions: ``"renumber"`` gives the short sequence fresh contiguous positions, ``"keep"``
            leaves every survivor its own. Decoders with multimodal positions always keep.
    """

    name: ClassVar[str] = ""
    """Set by :func:`~sttm_lmms.methods.register_method`."""
    reads: ClassVar[Literal["features", "attention"]] = "features"
    positions: ClassVar[Literal["renumber", "keep"]] = "renumber"

    def stages(self, layers: int) -> Sequence[int | Stage]:
        """Where the method may act in a decoder of that many layers; a number is in front of that
        layer."""
        raise NotImplementedError

    def reduce(self, tokens: Tokens, layer: int, probe: Probe, state: State) -> Kept | None:
        """Reduce the tokens of one video at one of the stages; None leaves them as they are."""
        raise NotImplementedError

    def count(self, grid: tuple[int, int, int]) -> int | None:
        """The exact number of tokens kept of a ``(T, H, W)`` video whatever it shows; None if that
        depends on it."""
        return None

    # -- for methods that change what decode steps or queries see; the others leave these alone -------------------

    def cache_stages(self, layers: int) -> Sequence[int]:
        """Layers in front of which :meth:`edit_cache` is called at every decode step (0: before the
        decoder)."""
        return ()

    def edit_cache(self, cache: CacheView, state: State) -> None:
        """Edit the KV cache at a decode step; see :class:`CacheView`."""

    def visible(self, prompt_tokens: int) -> Callable[[Any, Any, Any, Any], Any] | None:
        """A mask function ``(batch, head, query, key) -> bool`` that narrows causal attention over
        a prompt of that many tokens, as transformers' ``create_causal_mask(and_mask_function=)``
        takes it."""
        return None

    @property
    def shares_prefix(self) -> bool:
        """True if nothing before the question depends on it, so that one video's KV cache serves
        all questions."""
        return self.reads == "features"

    @classmethod
    def published(cls, **settings: Any) -> Method:
        """The method from the argument names of the published code, with its rounding and
        positions."""
        raise NotImplementedError(f"{cls.__name__} has no published settings")


@dataclass(frozen=True)
class LayerMethod(Method):
    """A method that acts once, in front of one layer.

    Attributes:
        start_layer: decoder layer (0-based) in front of which the visual tokens are reduced; 0
            reduces the input embeddings. The paper uses 2 for 7B models and 0 for 72B.
        decode_positions: rotary position of generated tokens in the layers that hold the short
            sequence. ``"continue"`` goes on from the last position of that layer, ``"reference"``
            takes the position that the full length would give, as the published code does.
    """

    start_layer: int = 2
    decode_positions: DecodePositions = "continue"

    def __post_init__(self) -> None:
        check_integer("start_layer", self.start_layer, 0)
        check_choice("decode_positions", self.decode_positions, get_args(DecodePositions))

    def stages(self, layers: int) -> Sequence[int | Stage]:
        return (self.start_layer,)


@dataclass(frozen=True, kw_only=True)
class BudgetMethod(LayerMethod):
    """A method with one knob.

    Attributes:
        budget: kept visual tokens / all visual tokens, in (0, 1].

    Raises:
        ValueError: a value is out of range.
    """

    budget: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("budget", self.budget, 0.0, 1.0, low_open=True)


@dataclass(frozen=True, kw_only=True)
class RatioMethod(LayerMethod):
    """A method that the published code gives the share to remove, and we the share to keep.

    Attributes:
        ratio: the published argument, share of the tokens to remove, in [0, 1], with the published
            rounding.
        budget: kept visual tokens / all visual tokens, in (0, 1]; what is kept is never more.

    Raises:
        ValueError: a value is out of range, or not exactly one of the two is given.
    """

    ratio: float | None = None
    budget: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ratio_or_budget(self.ratio, self.budget)


class BudgetWarning(UserWarning):
    """A video has no token set that meets the budget."""


def max_tokens(budget: float, total: int) -> int:
    """The largest count, at least 1, that is at most ``budget`` of ``total``: the one rule of every
    method.

    ``budget`` means the decimal number it is written as: 0.29 of 100 is 29, though ``0.29 * 100``
    is below 29 as a double. A quotient means itself: ``2 / 3`` of 3 is 2, though no decimal number
    of its digits reaches that.
    """
    count = math.floor(Fraction(str(budget)) * total)
    return max(1, count + ((count + 1) / total <= budget))


def check_exactly_one(**settings: Any) -> None:
    """Raise ``ValueError`` unless exactly one of the settings is given, that is, not None."""
    given = [f"{name}={value!r}" for name, value in settings.items() if value is not None]
    if len(given) != 1:
        raise ValueError(f"give exactly one of {', '.join(settings)}, not {' and '.join(given) or 'none of them'}")


def check_ratio_or_budget(ratio: float | None, budget: float | None) -> None:
    """Raise ``ValueError`` unless exactly one of the published ``ratio`` and our ``budget`` is
    given, in range."""
    if (ratio is None) == (budget is None):
        raise ValueError("give either ratio (the published argument: share removed) or budget (share kept)")
    if ratio is not None:
        check_number("ratio", ratio, 0.0, 1.0)
    else:
        check_number("budget", budget, 0.0, 1.0, low_open=True)


def from_published(settings: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """``settings`` of the published code under our names.

    Args:
        settings: arguments as the published code spells them. ``T`` (frames) and ``x`` (features),
            which its bare functions take too, are left out: they are input, not settings.
        names: published name -> ours.

    Raises:
        ValueError: a setting that the published method does not have.
    """
    for name in settings:
        if name not in names and name not in ("T", "x"):
            raise unknown("published setting", name, names)
    return {names[name]: value for name, value in settings.items() if name in names}
