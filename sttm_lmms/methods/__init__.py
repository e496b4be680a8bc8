"""The registry of reduction methods. A method is one file and one line here; others come in by
entry point or path."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from sttm_lmms.methods.base import Method

    M = TypeVar("M", bound=type[Method])
else:
    M = TypeVar("M")

GROUP = "sttm_lmms.methods"
"""Entry-point group of methods that live in other packages: ``name = "package.module:Class"``."""

BUILT_IN = {
    "sttm": "sttm_lmms.methods.sttm",
    "random": "sttm_lmms.methods.controls",
    "frames": "sttm_lmms.methods.controls",
    "pool": "sttm_lmms.methods.controls",
    "grid": "sttm_lmms.methods.grid",
    "evs": "sttm_lmms.methods.evs",
    "vidcom2": "sttm_lmms.methods.vidcom2",
    "cluster": "sttm_lmms.methods.cluster",
    "vcast": "sttm_lmms.methods.vcast",
    "flashvid": "sttm_lmms.methods.flashvid",
    "tome": "sttm_lmms.methods.tome",
    "dycoke_stage1": "sttm_lmms.methods.dycoke",
    "dycoke": "sttm_lmms.methods.dycoke",
    "fastv": "sttm_lmms.methods.fastv",
    "framefusion": "sttm_lmms.methods.framefusion",
    "framefusion_merge": "sttm_lmms.methods.framefusion",
    "streaming_llm": "sttm_lmms.methods.streaming_llm",
    "octree": "sttm_lmms.methods.octree",
    "pyramid": "sttm_lmms.methods.pyramid",
}
"""Name -> the module that registers it; imported when the method is asked for."""

_CLASSES: dict[str, type[Method]] = {}


def register_method(name: str) -> Callable[[M], M]:
    """Class decorator that makes a :class:`~sttm_lmms.methods.base.Method` known as ``name``.

    Raises:
        ValueError: another class has that name.
    """

    def register(cls: M) -> M:
        old: Any = _CLASSES.get(name)
        if old is not None and (old.__module__, old.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"method {name!r} is already {old.__module__}.{old.__qualname__}")
        cls.name = name
        _CLASSES[name] = cls
        return cls

    return register


def method_names() -> list[str]:
    """All known names: built in, registered, and offered by installed packages."""
    offered = [point.name for point in entry_points(group=GROUP)]
    return [*dict.fromkeys([*BUILT_IN, *_CLASSES, *offered])]


def get_method(name: str) -> type[Method]:
    """The method called ``name``, or at the import path ``package.module:Class``.

    Raises:
        ValueError: an unknown name; the message has the closest one and the list.
    """
    if name in _CLASSES:
        return _CLASSES[name]
    if name in BUILT_IN:
        import_module(BUILT_IN[name])
        return _CLASSES[name]
    if ":" in name:
        return _from_path(name)
    for point in entry_points(group=GROUP):
        if point.name == name:
            try:
                cls = point.load()
            except (ImportError, AttributeError) as error:
                raise ValueError(f"method={name!r} cannot be imported from {point.value}: {error}") from error
            return _named(cls, name)
    from sttm_lmms.errors import unknown

    raise unknown("method", name, [*method_names(), "none"])


def check_method(config: Any) -> Method:
    """``config`` itself if it is a registered method's settings.

    Raises:
        TypeError: it is something else, such as an instance of a subclass that was never
            registered.
    """
    name = getattr(type(config), "name", "")
    if name and _CLASSES.get(name) is type(config):
        return config
    raise TypeError(
        f"{type(config).__name__} is not a registered method such as STTMConfig(budget=0.5); known: "
        f"{', '.join(method_names())} (a class of your own needs @register_method)"
    )


def _from_path(path: str) -> type[Method]:
    module, _, attribute = path.partition(":")
    try:
        cls = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"method={path!r} cannot be imported: {error}") from error
    return _named(cls, path)


def _named(cls: Any, name: str) -> type[Method]:
    from sttm_lmms.methods.base import Method

    if not (isinstance(cls, type) and issubclass(cls, Method)):
        raise ValueError(f"method={name!r} is not a subclass of sttm_lmms.methods.base.Method")
    if _CLASSES.get(cls.name) is not cls:
        register_method(name)(cls)
    return cls
