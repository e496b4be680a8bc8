"""Generation settings of transformers as vLLM's ``SamplingParams``; what has no counterpart is refused."""

from __future__ import annotations

from typing import Any

from sttm_lmms.runtime.requests import GenerationSettings

_SAME = {"repetition_penalty": "repetition_penalty", "min_new_tokens": "min_tokens", "min_p": "min_p"}
"""``generate``'s name of a setting -> vLLM's."""
_OF_BEAMS = ("length_penalty", "early_stopping")
"""Without effect where there is one beam."""
_OFF: dict[str, Any] = {"no_repeat_ngram_size": 0, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0}
"""Value that does nothing."""


def sampling_fields(settings: GenerationSettings, defaults: Any, ends: list[int]) -> dict[str, Any]:
    """Fields of ``SamplingParams`` that ask for what ``generate`` would do.

    Args:
        defaults: the checkpoint's ``GenerationConfig``; it decides where the request says nothing, as in ``generate``.
        ends: ids of the tokens that end an answer.

    Raises:
        ValueError: a setting that vLLM has no counterpart of.
    """
    if settings.num_beams > 1:
        raise ValueError(f"num_beams={settings.num_beams}: vLLM has no beam search for prompt embeddings; num_beams=1")
    extra = {name: value for name, value in settings.extra if name not in _OF_BEAMS and value is not None}
    for name, value in extra.items():
        if name not in _SAME and value != _OFF.get(name, object()):
            raise ValueError(
                f"{name}={value!r}: vLLM has no such setting; leave it out, or use --model sttm_llava_video or "
                "sttm_llava_onevision"
            )
    ngram = getattr(defaults, "no_repeat_ngram_size", None)
    if ngram and "no_repeat_ngram_size" not in extra:
        raise ValueError(
            f"the checkpoint's generation_config.json has no_repeat_ngram_size={ngram}, which vLLM does not have: "
            "no_repeat_ngram_size=0 in --gen_kwargs turns it off"
        )
    fields: dict[str, Any] = {
        "max_tokens": settings.max_new_tokens,
        "temperature": 0.0,
        "stop_token_ids": ends,
        "ignore_eos": True,  # the ends above decide alone
        "detokenize": bool(settings.until),  # the answer is made of token ids here; vLLM needs texts to stop at them
    }
    if settings.until:
        fields["stop"] = list(settings.until)
    penalty = extra.pop("repetition_penalty", getattr(defaults, "repetition_penalty", None))
    if penalty not in (None, 1.0):
        fields["repetition_penalty"] = float(penalty)
    if settings.do_sample:
        fields["temperature"] = float(_first(settings.temperature, getattr(defaults, "temperature", None), 1.0))
        fields["top_p"] = float(_first(settings.top_p, getattr(defaults, "top_p", None), 1.0))
        fields["top_k"] = int(_first(settings.top_k, getattr(defaults, "top_k", None), 50))
        if (least := _first(extra.get("min_p"), getattr(defaults, "min_p", None), 0.0)) > 0:
            fields["min_p"] = float(least)
    if tokens := extra.get("min_new_tokens"):
        fields["min_tokens"] = int(tokens)
    return fields


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)
