"""The checkpoint's tokenizer: phrases of Mini-VNBench as single tokens, bytes for everything else."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

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


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level tokenizer without merges, with the phrases and ChatML's special tokens added."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in phrases()])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        model_max_length=32768,
        clean_up_tokenization_spaces=False,
    )
