"""Chats about a video, and what their logits have to be."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import Any

import torch

from sttm_lmms import reduce_tokens
from sttm_lmms.decoder import CACHE
from sttm_lmms.methods.base import Method

MORE = "<|im_end|>\nWhy?\n"
GREEDY = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}


@contextmanager
def reducing(model: Any, method: Method):
    """``reduce_tokens`` without the warning of a setting that merges nothing."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "a reduction was asked for")
        with reduce_tokens(model, method) as report:
            yield report


class Chat:
    """A prompt with a video, answered greedily; every answer is kept with the logits that it came
    from."""

    def __init__(self, model: Any, inputs: dict[str, Any], tokens: int = 4, **how: Any) -> None:
        self.model, self.inputs, self.tokens, self.how = model, inputs, tokens, how
        self.ids, self.cache = inputs["input_ids"], None
        self.logits: dict[int, torch.Tensor] = {}
        """Index of a token in the sequence -> the logits that it was chosen from."""
        self.answer(inputs)

    def answer(self, given: dict[str, Any]) -> None:
        how = {**GREEDY, **self.how, "return_dict_in_generate": True, "output_logits": True}
        output = self.model.generate(**given, **how, max_new_tokens=self.tokens)
        for step, logits in enumerate(output.logits):
            self.logits[self.ids.shape[1] + step] = logits[0]
        self.ids, self.cache = output.sequences, getattr(output, CACHE)

    def say(self, ids: torch.Tensor) -> None:
        """The next turn, as transformers documents it: all ids, and the cache."""
        self.ids = torch.cat([self.ids, ids], 1)
        self.answer({"input_ids": self.ids, "attention_mask": torch.ones_like(self.ids), CACHE: self.cache})

    def check(self) -> None:
        """Compare with a prefill and single steps."""
        start = self.inputs["input_ids"].shape[1]
        output = self.model(**self.inputs, use_cache=True)
        for index in range(start, self.ids.shape[1]):
            if index in self.logits:
                torch.testing.assert_close(self.logits[index], output.logits[0, -1], atol=1e-4, rtol=1e-4)
            cache = getattr(output, CACHE)
            output = self.model(input_ids=self.ids[:, index : index + 1], use_cache=True, **{CACHE: cache})


def encoded(tokenizer: Any, text: str) -> torch.Tensor:
    return tokenizer(text, return_tensors="pt")["input_ids"]


def log_probability(model: Any, inputs: dict[str, Any], tokens: torch.Tensor) -> float:
    total, output = 0.0, model(**inputs, use_cache=True)
    for token in tokens:
        total += float(output.logits[0, -1].log_softmax(-1)[token])
        output = model(input_ids=token.view(1, 1), use_cache=True, **{CACHE: getattr(output, CACHE)})
    return total
