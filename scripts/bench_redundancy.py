#!/usr/bin/env python
"""How redundant real footage is, in an encoder's features and in a decoder's hidden states: when
space matters.

    python scripts/bench_redundancy.py --features footage.safetensors --model FOLDER --gguf FILE

For each clip: cosine similarity of a cell with the same cell of the next frame, and with its
neighbours in the frame; what STTM removes at three budgets, and the share of it that goes in space;
what the thresholds published for LLaVA-Video-7B keep. The decoder reads the features through a
fixed random projection, not through a trained one.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from bench_real_decoder import EXPLAIN, digest, load
from benchlib import about, write_json
from needle_tasks import Words, project
from real_decoder_tables import markdown

from sttm_lmms import STTMConfig
from sttm_lmms.methods.sttm import merge_video_tokens

BUDGETS = (0.5, 0.3, 0.15)
PUBLISHED = {"kept_at_0.85_0.65": (0.85, 0.65), "kept_at_0.80_0.60": (0.80, 0.60)}


def redundancy(features: torch.Tensor) -> dict[str, float]:
    """The numbers of one clip ``[T, H, W, C]``."""
    features = features.float()
    unit = F.normalize(features, dim=-1)
    right, down = (unit[:, :, 1:] * unit[:, :, :-1]).sum(-1), (unit[:, 1:] * unit[:, :-1]).sum(-1)
    row = {
        "next_frame": float((unit[1:] * unit[:-1]).sum(-1).mean()),
        "neighbour": float(torch.cat([right.flatten(), down.flatten()]).mean()),
    }
    total = features.shape[:3].numel()
    for budget in BUDGETS:
        with warnings.catch_warnings():  # a clip that cannot be merged so far is merged as far as it goes
            warnings.simplefilter("ignore")
            merged = merge_video_tokens(features, STTMConfig(budget=budget))
        # Within a frame, cells that share a token went in space; what more is gone went in time.
        in_space = total - sum(len(frame.unique()) for frame in merged.source_map)
        row[f"in_space_at_{budget:.0%}"] = in_space / max(1, total - len(merged))
    for name, thresholds in PUBLISHED.items():
        row[name] = len(merge_video_tokens(features, STTMConfig(*thresholds))) / total
    return row


@torch.inference_mode()
def hidden_states(model: Any, cells: torch.Tensor, layers: Sequence[int]) -> dict[int, torch.Tensor]:
    """Hidden states ``[T, H, W, C]`` of the cells in front of each layer."""
    states = model.model(inputs_embeds=cells.flatten(0, 2)[None], output_hidden_states=True).hidden_states
    return {layer: states[layer][0].view_as(cells) for layer in layers}


def rows_of(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each clip and representation."""
    from safetensors.torch import load_file

    features = load_file(options.features)
    rows = [{"clip": clip, "in": "encoder", **redundancy(cells)} for clip, cells in features.items()]
    if not options.model:
        return rows
    model, tokenizer = load(options.model, options.gguf)
    words = Words(model, tokenizer)
    model.model.layers = model.model.layers[: max(options.layers) + 1]  # what follows is not looked at
    for clip, cells in features.items():
        for layer, states in hidden_states(model, project(words, cells, seed=0), options.layers).items():
            rows.append({"clip": clip, "in": f"decoder, layer {layer}", **redundancy(states)})
        print(clip, flush=True)
    return rows


def table(rows: pd.DataFrame) -> str:
    """Median [least-most] over clips for each representation."""

    def cell(values: pd.Series, percent: bool) -> str:
        low, middle, high = (value * (100 if percent else 1) for value in values.quantile([0, 0.5, 1]))
        return f"{middle:.0f}% [{low:.0f}-{high:.0f}]" if percent else f"{middle:.2f} [{low:.2f}-{high:.2f}]"

    columns = [column for column in rows.columns if column not in ("clip", "in")]
    lines = [["features", *(column.replace("_", " ") for column in columns)]]
    for name, part in rows.groupby("in", sort=False):
        lines.append([name, *(cell(part[c], c.startswith(("in_space", "kept"))) for c in columns)])
    return markdown(lines)


def plot(rows: pd.DataFrame, path: Path) -> None:
    """A point for each clip: similarity in space over similarity in time, coloured by what goes in
    space at 30%."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys(rows["in"]))
    size = (3.2 * len(names) + 1, 3.4)
    figure, panels = plt.subplots(1, len(names), figsize=size, layout="constrained", squeeze=False, sharey=True)
    for axes, name in zip(panels[0], names, strict=True):
        part = rows[rows["in"] == name]
        points = axes.scatter(part["next_frame"], part["neighbour"], c=part["in_space_at_30%"], vmin=0, vmax=1)
        axes.set(title=name, xlabel="cosine with the next frame")
        axes.grid(alpha=0.3)
    panels[0, 0].set_ylabel("cosine with neighbours")
    figure.colorbar(points, ax=panels[0].tolist(), label="share removed in space at 30%")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, required=True, help="from footage_features.py")
    parser.add_argument("--model", help="as for bench_real_decoder.py; without it, the encoder's features only")
    parser.add_argument("--gguf", help="name of a GGUF file in --model")
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 2, 6])
    parser.add_argument("--out", type=Path, default=Path("results/real_decoder/redundancy"))
    options = parser.parse_args(arguments)
    try:
        rows = rows_of(options)
    except (ImportError, OSError) as error:
        print(f"error: {error}\n{EXPLAIN}", file=sys.stderr)
        return 2
    header = about("cpu") | {"features_sha256": digest(options.features)}
    write_json(options.out / "redundancy.json", about=header, rows=rows)
    found = pd.DataFrame(rows)
    notes = f"{found['clip'].nunique()} clips; median [least-most]. `{header['command']}`, {header['date']}."
    text = f"{table(found)}\n{notes}\n"
    (options.out / "redundancy.md").write_text(text)
    print(text)
    plot(found, options.out / "redundancy.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
