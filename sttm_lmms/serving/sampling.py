"""Generation settings of transformers as vLLM's ``SamplingParams``; what has no counterpart is
refused."""

from __future__ import annotations

from typing import Any

from sttm_lmms.runtime.requests import GenerationSettings

_SAME = ("repetition_penalty", "min_new_tokens", "min_p")
"""Settings of ``generate`` that vLLM has, too."""
_OF_BEAMS = ("length_penalty", "early_stopping")
"""Without effect where there is one beam."""
_OF_SAMPLING: dict[str, Any] = {"typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "top_h": None}
"""Without effect in greedy decoding -> the value that does nothing."""
_UNKNOWN: dict[str, Any] = {
    **{"no_repeat_ngram_size": 0, "max_time": None, "stop_strings": None, "watermarking_config": None},
    **dict.fromkeys(("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias")),
    **{"exponential_decay_length_penalty": None, "forced_eos_token_id": None},
}
"""Settings of ``generate`` that vLLM has no counterpart of -> the value, beside None, that does
nothing."""


def sampling_fields(settings: GenerationSettings, defaults: Any, ends: list[int]) -> dict[str, Any]:
    """Fields of ``SamplingParams`` that ask for what ``generate`` would do.

    Args:
        defaults: the checkpoint's ``GenerationConfig``; it decides where the request says nothing,
            as in ``generate``.
        ends: ids of the tokens that end an answer.

    Raises:
        ValueError: a setting that vLLM has no counterpart of.
    """
    if settings.num_beams > 1:
        raise ValueError(f"num_beams={settings.num_beams}: vLLM has no beam search for prompt embeddings; num_beams=1")
    asked = {name: value for name, value in settings.extra if name not in _OF_BEAMS and value is not None}

    def effective(name: str) -> Any:
        return asked[name] if name in asked else getattr(defaults, name, None)

    idle = _UNKNOWN | (_OF_SAMPLING if settings.do_sample else {})
    for name in dict.fromkeys([*idle, *(name for name in asked if name not in (*_SAME, *_OF_SAMPLING))]):
        value = effective(name)
        if value in (None, idle.get(name)):
            continue
        if name in asked:
            raise ValueError(
                f"{name}={value!r}: vLLM has no such setting; leave it out, or use --model sttm_llava_video or "
                "sttm_llava_onevision"
            )
        off = "remove it there" if idle[name] is None else f"{name}={idle[name]} in --gen_kwargs turns it off"
        raise ValueError(
            f"the checkpoint's generation_config.json has {name}={value!r}, which vLLM does not have: {off}"
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
    if (penalty := effective("repetition_penalty")) not in (None, 1.0):
        fields["repetition_penalty"] = float(penalty)
    if settings.do_sample:
        fields["temperature"] = float(_first(settings.temperature, getattr(defaults, "temperature", None), 1.0))
        fields["top_p"] = float(_first(settings.top_p, getattr(defaults, "top_p", None), 1.0))
        fields["top_k"] = int(_first(settings.top_k, getattr(defaults, "top_k", None), 50))
        if (least := _first(effective("min_p"), 0.0)) > 0:
            fields["min_p"] = float(least)
    if tokens := effective("min_new_tokens"):
        fields["min_tokens"] = int(tokens)
    return fields


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)
