#!/usr/bin/env python
"""Small budgets: STTM alone, and STTM with a share of the budget kept for the most novel tokens.

    python scripts/bench_protect.py

``protect`` keeps the tokens that are least similar to every token of the frames before from merging. It is a method of
this script, not of the package: it would have to win here first. Same held-out generated videos for every row, both
embedded checkpoints. Writes JSON and a table, with 95% intervals clustered by video and differences paired by video,
into results/bench/protect/, after every row.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from bench_frames import answers_of, gain
from benchlib import about, write_json

from sttm_lmms import STTMConfig, get_method, load_pretrained
from sttm_lmms.config import check_number
from sttm_lmms.demo import QWEN_VIDEO, make_videos, shipped
from sttm_lmms.methods.base import Probe, Scratch
from sttm_lmms.methods.sttm import merge_video_tokens
from sttm_lmms.runtime import Engine
from sttm_lmms.types import Kept, Tokens
from sttm_lmms.video import VideoSettings

VIDEO = {
    "llava_video": VideoSettings(max_frames=16),
    "qwen2_vl": VideoSettings(**QWEN_VIDEO),
}


@dataclass(frozen=True)
class Protected(STTMConfig):
    """STTM with a budget, of which the most novel tokens get a share.

    Attributes:
        protect: tokens that stay themselves / tokens that the budget allows, in [0, 1).
    """

    protect: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("protect", self.protect, 0.0, 1.0)

    def reduce(self, tokens: Tokens, layer: int, probe: Probe, scratch: Scratch) -> Kept:
        """Merge to fewer tokens, take the novel ones out of their groups, and again until the count is right."""
        most = int(self.budget * len(tokens))
        novel = most_novel(tokens, int(self.protect * most))
        low, high = 0, most  # of the merge below; what is taken out comes on top
        best = None
        while low <= high:
            middle = (low + high + 1) // 2
            config = STTMConfig(
                root_level=self.root_level, start_layer=self.start_layer, budget=max(middle, 1) / len(tokens)
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                kept = take_out(tokens, Kept.of_merged(merge_video_tokens(tokens.as_grid(), config)), novel)
            if len(kept) <= most:
                best, low = kept, middle + 1
            else:
                high = middle - 1
        # At the method's floor nothing is left for novel tokens.
        return best if best is not None else super().reduce(tokens, layer, probe, scratch)


def most_novel(tokens: Tokens, number: int) -> torch.Tensor:
    """``[N]`` bool: the ``number`` tokens least similar to every token of the frames before; none of frame 0."""
    video = F.normalize(tokens.as_grid().float().flatten(1, 2), dim=-1)
    nearest = torch.full(video.shape[:2], torch.inf)
    for t in range(1, len(video)):
        nearest[t] = (video[t] @ video[:t].flatten(0, 1).T).amax(1)
    novel = torch.zeros(len(tokens), dtype=torch.bool)
    novel[nearest.flatten().argsort(stable=True)[: min(number, nearest[1:].numel())]] = True
    return novel


def take_out(tokens: Tokens, kept: Kept, novel: torch.Tensor) -> Kept:
    """``novel`` tokens leave their groups; a group that lost one averages the rest and moves to the first of it."""
    cell = torch.arange(len(tokens))
    sizes = torch.zeros(len(kept), dtype=torch.long).index_add_(0, kept.owner, torch.ones_like(cell))
    leaves = novel & (sizes[kept.owner] > 1)
    label = torch.where(leaves, len(kept) + cell, kept.owner)
    group, owner = label.unique(return_inverse=True)
    first = torch.full((len(group),), len(tokens)).scatter_reduce_(0, owner, cell, "amin")
    counts = torch.zeros(len(group)).index_add_(0, owner, torch.ones(len(tokens)))
    mean = torch.zeros(len(group), tokens.features.shape[1]).index_add_(0, owner, tokens.features.float())
    features = (mean / counts[:, None]).to(tokens.features.dtype)
    lost = torch.zeros(len(kept), dtype=torch.bool)
    lost[kept.owner[leaves]] = True
    whole = (group < len(kept)).nonzero().squeeze(1)
    whole = whole[~lost[group[whole]]]
    features[whole] = kept.features[group[whole]]
    first[whole] = kept.index[group[whole]]
    order = first.argsort()
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    return Kept(features[order], first[order], place[owner])


def table(rows: Sequence[dict[str, Any]], header: dict[str, Any]) -> str:
    """Markdown, a line for each checkpoint and budget."""
    lines = [
        "| checkpoint | budget | kept | STTM | kept | with `protect` | difference |",
        "|---|---:|---:|---|---:|---|---|",
    ]
    for row in rows:
        cells = [row["family"], f"{row['budget']:.0%}"]
        for run in (row["plain"], row["protected"]):
            low, high = run["interval"]
            cells += [
                f"{run['tokens_into_the_llm'] / run['visual_tokens']:.1%}",
                f"{run['accuracy']:.1%} [{low:.1%}, {high:.1%}]",
            ]
        cells.append("{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * value for value in row["gain"])))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"`{header['command']}`, {header['device']}, {header['date']}"]) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=list(VIDEO), choices=list(VIDEO))
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.2, 0.15, 0.1, 0.05])
    parser.add_argument("--protect", type=float, default=0.2, help="share of the budget")
    parser.add_argument("--videos", type=int, default=100, help="a third for each kind of question; four tries each")
    parser.add_argument("--work", type=Path, default=Path("outputs/bench/protect"), help="folder for the videos")
    parser.add_argument("--out", type=Path, default=Path("results/bench/protect"))
    options = parser.parse_args(arguments)
    protected: Any = get_method("bench_protect:Protected")
    rows: list[dict[str, Any]] = []
    header = about("cpu")
    for family in options.families:
        model, processor = load_pretrained(shipped(family), dtype=torch.float32)
        root = make_videos(options.work, options.videos, family)
        newline = "no_token" if family == "llava_video" else None
        for budget in options.budgets:
            configs = (STTMConfig(budget=budget), protected(budget=budget, protect=options.protect))
            runs = [
                answers_of(Engine(model, processor, config, video=VIDEO[family], newline=newline), root)
                for config in configs
            ]
            difference = gain(runs[1], runs[0])
            for run in runs:
                del run["scores"], run["videos"]
            rows.append(
                {"family": family, "budget": budget, "plain": runs[0], "protected": runs[1], "gain": difference}
            )
            print(table(rows, header).splitlines()[-3], flush=True)
            write_json(options.out / "cpu.json", **header, videos=options.videos, protect=options.protect, rows=rows)
            (options.out / "cpu.md").write_text(table(rows, header))


if __name__ == "__main__":
    main()
