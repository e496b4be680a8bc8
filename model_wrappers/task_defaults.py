"""What a task leaves to the model: the wording of its prompt, and how its answers are generated.

Each is as in lmms-eval's own wrapper of the same model, so that scores can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loguru import logger

from sttm_lmms.runtime import GenerationSettings

DEFAULT_NEW_TOKENS = 1024
"""``max_new_tokens`` where the task does not say it, in most of lmms-eval's own wrappers."""
QWEN_NEW_TOKENS = 128

STOCK_WRAPPERS: Mapping[str, tuple[tuple[str, ...], int]] = {
    "llava_video": (("llava_vid",), DEFAULT_NEW_TOKENS),
    "llava_onevision": (("llava_onevision", "llava_hf"), DEFAULT_NEW_TOKENS),
    "qwen2_vl": (("qwen2_vl",), QWEN_NEW_TOKENS),
    "qwen2_5_vl": (("qwen2_5_vl",), QWEN_NEW_TOKENS),
    "qwen3_vl": (("qwen3_vl",), QWEN_NEW_TOKENS),
    "qwen3_5": (("qwen3_5",), DEFAULT_NEW_TOKENS),
    "smolvlm": ((), DEFAULT_NEW_TOKENS),
    "glm4v": (("glm4v",), DEFAULT_NEW_TOKENS),
    "internvl": (("internvl_hf", "internvl3_5", "internvl3"), DEFAULT_NEW_TOKENS),
}
"""Family -> lmms-eval's own wrappers of it, and their ``max_new_tokens`` where the task does not
say it."""

# What tasks of lmms-eval write among their generation settings without meaning ``generate``.
_OF_TASKS = (
    *("until", "stop_sequences", "do_sample", "image_aspect_ratio", "visual_cot", "max_agentic_steps"),
    *("skip_special_tokens", "seed"),
)


def fill_in(task: str, source: Any, given: Mapping[str, Any] | None, family: str, *, simple: bool) -> None:
    """Choose the prompt of a task, and log what is assumed where the task does not say it.

    Args:
        source: lmms-eval's task object, None where there is none.
        given: its generation settings, None where nothing is generated.
        simple: whether it is run for simple models, whose prompts are made before we see them.
    """
    wrappers, max_new_tokens = STOCK_WRAPPERS[family]
    if not simple and (entry := use_prompt_of(source, wrappers)):
        logger.info("{}: prompt as for lmms-eval's own wrapper {}", task, entry)
    if given is None:
        return
    if given.get("max_new_tokens") is None:
        logger.info(
            "{}: at most {} new tokens, as in lmms-eval's own wrapper (the task does not say; --gen_kwargs "
            "max_new_tokens=N does)",
            task,
            max_new_tokens,
        )
    if idle := without_effect(given):
        logger.warning(
            "{}: {} without effect, because nothing is sampled (do_sample=True and a temperature above 0 do)",
            task,
            ", ".join(idle),
        )


def generation_settings(
    gen_kwargs: Mapping[str, Any], *, max_new_tokens: int = DEFAULT_NEW_TOKENS
) -> GenerationSettings:
    """What a task and ``--gen_kwargs`` ask for.

    As in lmms-eval's own wrappers, a temperature above 0 means sampling and 0 means greedy.

    Args:
        max_new_tokens: of an answer where the task does not say it.

    Raises:
        ValueError: a name that neither ``generate`` nor any task of lmms-eval knows.
    """
    chosen = {name: value for name, value in gen_kwargs.items() if name not in _OF_TASKS and value is not None}
    temperature = chosen.get("temperature")
    do_sample = gen_kwargs.get("do_sample")
    chosen["do_sample"] = temperature != 0 and bool(temperature if do_sample is None else do_sample)
    until = gen_kwargs.get("until") or gen_kwargs.get("stop_sequences") or ()
    chosen["until"] = (until,) if isinstance(until, str) else tuple(text for text in until if text)
    return GenerationSettings.of(**{"max_new_tokens": max_new_tokens, **chosen})


def without_effect(gen_kwargs: Mapping[str, Any]) -> list[str]:
    """The settings of sampling that a greedy request holds, such as ``"top_k=20"``; they are
    ignored."""
    if generation_settings(gen_kwargs).do_sample:
        return []
    neutral = {"do_sample": False, "temperature": 0, "top_p": 1, "top_k": None, "min_p": None, "typical_p": 1}
    return [f"{name}={gen_kwargs[name]}" for name, idle in neutral.items() if gen_kwargs.get(name) not in (None, idle)]


def use_prompt_of(task: Any, wrappers: Sequence[str]) -> str | None:
    """Let a task word its prompts as for one of lmms-eval's own wrappers, where it has an entry for
    it.

    lmms-eval looks the entry up by the name of the model, and would find none of ours.

    Returns:
        The wrapper whose entry is used; None if the task has none for them.
    """
    entries = getattr(getattr(task, "config", None), "lmms_eval_specific_kwargs", None)
    if not isinstance(entries, Mapping) or getattr(task, "model_name", None) in entries:
        return None
    found = next((name for name in wrappers if isinstance(entries.get(name), Mapping)), None)
    if found is not None:
        task.lmms_eval_specific_kwargs = entries[found]
    return found
