"""Generate with transformers: answers as token ids, cut where the request says."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
)

from sttm_lmms.families.assemble import as_plain_text, token_ids
from sttm_lmms.families.template import control_tokens
from sttm_lmms.runtime.requests import GenerationSettings


def tokenizer_of(processor: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a processor (or the tokenizer itself)."""
    return getattr(processor, "tokenizer", processor)


def cut(text: str, until: Sequence[str]) -> str:
    """``text`` up to the first of the stop texts."""
    ends = [index for stop in until if stop and (index := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


class _StopAtText(StoppingCriteria):
    """A row is done once its new text holds a stop text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, until: Sequence[str], start: int) -> None:
        self.tokenizer, self.until, self.start = tokenizer, until, start

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        texts = self.tokenizer.batch_decode(input_ids[:, self.start :], skip_special_tokens=True)
        done = [any(stop in text for stop in self.until if stop) for text in texts]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)


class _OnNewTokens(LogitsProcessor):
    """Another processor, which sees the generated tokens and nothing of the prompt's ``start``
    tokens."""

    def __init__(self, processor: LogitsProcessor, start: int) -> None:
        self.processor, self.start = processor, start

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return self.processor(input_ids[:, self.start :], scores)


# Setting of ``generate``, its value that does nothing, and what ``generate`` makes of any other.
_PENALTIES: tuple[tuple[str, float, Callable[[Any], LogitsProcessor]], ...] = (
    ("repetition_penalty", 1.0, RepetitionPenaltyLogitsProcessor),
    ("no_repeat_ngram_size", 0, NoRepeatNGramLogitsProcessor),
)


def _without_prompt(model: Any, arguments: dict[str, Any], start: int) -> dict[str, Any]:
    """``arguments`` of ``generate`` with the penalties on repetition, the checkpoint's own too,
    kept off the prompt."""
    found: list[LogitsProcessor] = []
    for name, neutral, make in _PENALTIES:
        value = arguments.get(name, getattr(model.generation_config, name, None))
        if value not in (None, neutral):
            found.append(_OnNewTokens(make(value), start))
            arguments = {**arguments, name: neutral}
    return {**arguments, "logits_processor": LogitsProcessorList(found)} if found else arguments


_PINNED: dict[str, Any] = {
    # A cached prefix can only be continued with a cache, and with the one that holds it.
    **{"use_cache": True, "cache_implementation": None, "cache_config": None, "max_cache_len": None},
    "prefill_chunk_size": None,  # would cut a video into pieces
    # One answer a row, as a plain tensor of ids.
    **{"num_return_sequences": 1, "return_dict_in_generate": False, "output_scores": False, "output_logits": False},
    **{"output_attentions": False, "output_hidden_states": False},
    # Guessing ahead gives the same greedy answers, and needs a cache that is cut back token by
    # token.
    **{"prompt_lookup_num_tokens": None, "assistant_early_exit": None, "use_mtp": None, "speculation_type": None},
    "is_assistant": False,
    # Lengths of the whole sequence: a cached prefix counts the tokens that are left of it.
    **{"max_length": None, "min_length": 0},
    "compile_config": None,
    "disable_compile": True,
}
"""Settings of ``generate`` that the engine decides, whatever a checkpoint's
``generation_config.json`` says."""

_REFUSED: dict[str, tuple[Any, ...]] = {
    "guidance_scale": (1, 1.0),
    "penalty_alpha": (0, 0.0),
    "dola_layers": (),
    "num_beam_groups": (1,),
    "diversity_penalty": (0, 0.0),
    "constraints": (),
    "force_words_ids": (),
    "token_healing": (False,),
    "encoder_repetition_penalty": (1, 1.0),
    "encoder_no_repeat_ngram_size": (0,),
    "low_memory": (False,),
}
"""Ways to decode that a shared prefix has no counterpart of -> the values, beside None, that do
nothing."""


def check_decoding(model: Any) -> None:
    """Raise ``ValueError`` if the checkpoint's ``generation_config`` asks for a way to decode that
    is not supported."""
    for name, idle in _REFUSED.items():
        value = getattr(model.generation_config, name, None)
        if value is not None and value not in idle:
            raise ValueError(
                f"generation_config.json of the checkpoint has {name}={value!r}, which is not supported: greedy "
                f"decoding, sampling and beam search are; remove it, or set model.generation_config.{name} = None"
            )


@torch.inference_mode()
def generate_ids(
    model: Any,
    processor: Any,
    settings: GenerationSettings,
    *,
    input_ids: torch.Tensor,
    penalise_prompt: bool = True,
    **inputs: Any,
) -> list[list[int]]:
    """New token ids of each row (end-of-sequence token and padding left out).

    Args:
        input_ids: ``[B, L]``, the prompt or, with a KV cache among ``inputs``, cached tokens and
            question.
        penalise_prompt: False keeps penalties on repetition off the prompt, as if ``generate`` had
            its embeddings only.
        inputs: further arguments of ``model.generate``.
    """
    tokenizer = tokenizer_of(processor)
    ends = end_ids(model, processor)
    pad = tokenizer.pad_token_id
    start = input_ids.shape[1]
    if settings.until:
        stops = StoppingCriteriaList([_StopAtText(tokenizer, settings.until, start)])
        inputs["stopping_criteria"] = stops
    check_decoding(model)
    if fixed := [name for name, _ in settings.extra if name in _PINNED]:
        raise ValueError(f"generation settings {', '.join(fixed)} are decided by the engine; leave them out")
    # Older versions of transformers do not have all of them, and refuse what they do not know.
    pinned = {name: value for name, value in _PINNED.items() if hasattr(model.generation_config, name)}
    arguments = {"eos_token_id": ends, **settings.arguments(), **pinned}
    if model.generation_config.stop_strings:
        arguments["tokenizer"] = tokenizer
    if not penalise_prompt:
        arguments = _without_prompt(model, arguments, start)
    sequences = model.generate(
        input_ids=input_ids,
        pad_token_id=pad if pad is not None else ends[0],
        **arguments,
        **inputs,
    )
    return [until_end(row[start:].tolist(), ends, pad) for row in sequences]


def end_ids(model: Any, processor: Any) -> list[int]:
    """Ids of the tokens that end an answer: the checkpoint's, or the tokenizer's where it names
    none."""
    eos = model.generation_config.eos_token_id
    eos = tokenizer_of(processor).eos_token_id if eos is None else eos
    return list(eos) if isinstance(eos, (list, tuple)) else [eos]


def until_end(ids: list[int], ends: Collection[int], pad: int | None = None) -> list[int]:
    """``ids`` up to the first of ``ends``, without padding behind them."""
    for index, token in enumerate(ids):
        if token in ends:
            return ids[:index]
    while ids and ids[-1] == pad:
        ids = ids[:-1]
    return ids


def answer_text(processor: Any, ids: Sequence[int], until: Sequence[str]) -> str:
    """The answer as text, without special tokens, cut at the stop texts and stripped."""
    text = str(tokenizer_of(processor).decode(list(ids), skip_special_tokens=True))
    return cut(text, until).strip()


def continuation_ids(processor: Any, text: str) -> torch.Tensor:
    """``[n]`` int64 ids of a text that is scored behind a prompt."""
    plain = as_plain_text(text, control_tokens(processor))
    return torch.tensor(token_ids(tokenizer_of(processor), plain), dtype=torch.long)


def continuation_score(logits: torch.Tensor, targets: torch.Tensor) -> tuple[float, bool]:
    """Summed log-probability of ``targets`` ``[n]`` under ``logits`` ``[n, V]``, and whether all
    are the argmax."""
    scores = torch.log_softmax(logits.float(), dim=-1)
    targets = targets.to(scores.device)
    total = scores.gather(-1, targets[:, None]).sum()
    return float(total), bool((scores.argmax(dim=-1) == targets).all())
