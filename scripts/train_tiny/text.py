"""The checkpoints' tokenizers: phrases of Mini-VNBench as single tokens, bytes for everything
else."""

from __future__ import annotations

from tokenizers import AddedToken
from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2Tokenizer

from sttm_lmms.benchmarks.mini.objects import OBJECTS
from sttm_lmms.benchmarks.mini.questions import COUNTING, ORDERING, RETRIEVAL
from sttm_lmms.benchmarks.prompt import INSTRUCTION, LEAD_OUT, letter_list

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SYSTEM = "You are a helpful assistant."
PREFIX = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n"
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"


def phrases() -> list[str]:
    """Every phrase that is one token."""
    letters = [f"{letter}. " for letter in "ABCD"]
    chat = [f"system\n{SYSTEM}", "user", "assistant"]
    instruction = INSTRUCTION.format(letters=letter_list("ABCD"))
    return [*OBJECTS, *letters, ", ", RETRIEVAL, ORDERING, *COUNTING, instruction, LEAD_OUT, *chat]


def build_tokenizer() -> Qwen2Tokenizer:
    """Qwen2's byte-level tokenizer without merges, with special tokens and the phrases added."""
    tokens = [*sorted(ByteLevel.alphabet()), *SPECIAL]
    tokenizer = Qwen2Tokenizer(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=[],
        unk_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=[token for token in SPECIAL if token not in ("<|endoftext|>", "<|im_end|>")],
        model_max_length=32768,
    )
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in phrases()])
    return tokenizer
