"""Generation settings in force, and who said so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sttm_lmms.runtime import GenerationSettings

_SILENT = ("transformers_version", "use_cache", "output_attentions", "output_hidden_states", "_from_model_config")
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p")


@dataclass(frozen=True)
class InForce:
    """One setting of ``generate``: its value, and ``task``, ``checkpoint`` or ``sttm-lmms`` as its source."""

    name: str
    value: Any
    source: str


def in_force(settings: GenerationSettings, asked: Mapping[str, Any], checkpoint: Any) -> list[InForce]:
    """Every setting that is not left at what transformers does by itself.

    Args:
        settings: of the requests.
        asked: what the task (and ``--gen_kwargs``) holds.
        checkpoint: the model's ``generation_config``.
    """
    own = {name: value for name, value in checkpoint.to_diff_dict().items() if name not in _SILENT}
    given = {"until": list(settings.until), **settings.arguments()}
    found = []
    for name in dict.fromkeys([*given, *own]):
        sampling = name in _SAMPLING
        if sampling and not settings.do_sample:
            if name in own or asked.get(name):
                source = "checkpoint" if name in own else "task"
                found.append(
                    InForce(name, "none (greedy)", f"sttm-lmms; the {source} has {own.get(name, asked.get(name))}")
                )
        elif name in given:
            if given[name] not in (None, []):
                found.append(InForce(name, given[name], "task" if name in asked else "sttm-lmms"))
        else:
            found.append(InForce(name, own[name], "checkpoint"))
    return found
