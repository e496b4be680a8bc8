"""The registry of reduction methods. A method is one file and one line here."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from sttm_lmms.methods.sttm import MergedTokens


class Merge(Protocol):
    """Reduce one video's hidden states ``[T, H, W, C]`` to the tokens that are kept."""

    def __call__(self, features: torch.Tensor, config: Any, head_dim: int | None = None) -> MergedTokens: ...


@dataclass(frozen=True)
class Method:
    """One registry line.

    Attributes:
        name: what users write in ``method=``.
        config: ``"module:class"`` of its frozen settings; they hold at least ``start_layer`` and ``decode_positions``.
        merge: ``"module:function"`` with the signature of :class:`Merge`.
        query_agnostic: True if the result does not depend on the question, so that one video's KV serves them all.
    """

    name: str
    config: str
    merge: str
    query_agnostic: bool = True

    @property
    def config_class(self) -> type:
        return _load(self.config)

    @property
    def merge_function(self) -> Merge:
        return _load(self.merge)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("sttm", "sttm_lmms.config:STTMConfig", "sttm_lmms.methods.sttm:merge_video_tokens"),
        Method("random", "sttm_lmms.methods.random:RandomConfig", "sttm_lmms.methods.random:keep_random"),
        Method("frames", "sttm_lmms.methods.frames:FramesConfig", "sttm_lmms.methods.frames:keep_frames"),
        Method("pool", "sttm_lmms.methods.pool:PoolConfig", "sttm_lmms.methods.pool:pool_cells"),
    )
}


def get_method(name: str) -> Method:
    """The method called ``name``; an unknown name is answered with the closest one and the list."""
    if name not in METHODS:
        from sttm_lmms.errors import unknown

        raise unknown("method", name, [*METHODS, "none"])
    return METHODS[name]


def method_of(config: Any) -> Method:
    """The method whose settings ``config`` is. Raises ``TypeError`` for anything else."""
    for method in METHODS.values():
        if isinstance(config, method.config_class):
            return method
    known = ", ".join(m.config.split(":")[1] for m in METHODS.values())
    raise TypeError(f"{type(config).__name__} is not the settings of a registered method; known: {known}")


def _load(path: str) -> Any:
    module, name = path.split(":")
    return getattr(import_module(module), name)
