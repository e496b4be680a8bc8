#!/usr/bin/env python
"""Draw the curves of a training and the tables of an evaluation: ``python -m train_tiny.plot FOLDER``.

In a folder with ``train.jsonl`` and ``accuracy.json`` that gives ``curves.png`` and ``accuracy.png``; in a folder of
folders with ablation tables it gives one ``accuracy.png`` for all of them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

VISION = {"needle": "needles named right", "shape": "shape right"}
ANSWERS = {"answer_ret": "retrieval", "answer_ord": "ordering", "answer_cnt": "counting"}


def running_steps(lines: list[dict[str, Any]]) -> list[int]:
    """Optimizer steps since the first line; a stage's own count starts again when it is started anew."""
    steps, total, last = [], 0, {"stage": "", "step": 0}
    for line in lines:
        goes_on = line["stage"] == last["stage"] and line["step"] > last["step"]
        total += line["step"] - last["step"] if goes_on else min(line["step"], 50)
        steps.append(total)
        last = line
    return steps


def draw(log: Path, target: Path) -> None:
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), width_ratios=(1, 2))
    seeing = [line for line in lines if line["stage"] == "vision"]
    for key, label in VISION.items():
        left.plot(running_steps(seeing), [line[key] for line in seeing], label=label)
    left.set(title="Vision side, single steps in time", xlabel="steps", ylabel="share", ylim=(0, 1.02))
    answering = [line for line in lines if "answer_cnt" in line]
    steps = running_steps(answering)
    for key, label in ANSWERS.items():
        right.plot(steps, [line.get(key) for line in answering], label=label)
    for i, line in enumerate(answering):
        if i == 0 or line["stage"] != answering[i - 1]["stage"]:
            right.axvline(steps[i], color="0.8", zorder=0)
            right.text(steps[i], 1.03, line["stage"], color="0.4", va="bottom")
    right.axhline(0.25, color="0.6", linestyle=":", zorder=0)
    right.set(xlabel="steps", ylim=(0, 1.02))
    right.set_title("Answers, training stream (running mean)", pad=18)
    for axes in (left, right):
        axes.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(target, dpi=110)


METHODS = {"STTM, budget": "STTM", "random": "random tokens", "whole": "whole frames", "average": "average pooling"}
KINDS = ("retrieval", "ordering", "counting")


def draw_accuracy(table: Path, target: Path) -> None:
    """Accuracy over kept share, a panel for each kind of question, a line for each method."""
    rows = json.loads(table.read_text())
    base = rows[0]
    figure, panels = plt.subplots(1, 3, figsize=(11, 3.6), sharey=True)
    for axes, kind in zip(panels, KINDS, strict=True):
        for start, label in METHODS.items():
            chosen = [row for row in rows if row["setting"].startswith(start) and row["questions"] == base["questions"]]
            points = sorted([*chosen, base], key=lambda row: row["kept"])
            means = [row[kind]["accuracy"] for row in points]
            errors = [
                [max(0.0, mean - row[kind]["interval"][0]) for mean, row in zip(means, points, strict=True)],
                [max(0.0, row[kind]["interval"][1] - mean) for mean, row in zip(means, points, strict=True)],
            ]
            kept = [row["kept"] for row in points]
            axes.errorbar(kept, means, yerr=errors, label=label, marker="o", markersize=4, capsize=2)
        axes.axhline(0.25, color="0.6", linestyle=":", zorder=0)
        axes.set(title=kind, xlabel="kept visual tokens / all", xlim=(0, 1.03), ylim=(0, 1.03))
    panels[0].set_ylabel("accuracy")
    panels[2].legend(loc="lower right", fontsize=8)
    figure.tight_layout()
    figure.savefig(target, dpi=110)


HALVES = {
    "both": "STTM, both steps",
    "spatial only": "spatial step only",
    "temporal only": "temporal step only",
    "random": "random tokens",
    "average": "average pooling",
}


def draw_ablation(folders: list[Path], target: Path) -> None:
    """Accuracy over kept share with 95% intervals, a panel for each folder, a line for each way to remove tokens."""
    figure, panels = plt.subplots(1, len(folders), figsize=(4 * len(folders), 3.8), sharey=True, squeeze=False)
    for axes, folder in zip(panels[0], folders, strict=True):
        rows = json.loads((folder / "accuracy.json").read_text())
        for number, (start, label) in enumerate(HALVES.items()):
            points = [row for row in rows if row["setting"].startswith(start)]
            if not points:
                continue
            # Lines lie on each other where a step changes nothing: a little to the side, all can be seen.
            points = [row | {"kept": row["kept"] + 0.012 * (number - 1)} for row in points]
            plot_points(axes, sorted([*points, rows[0]], key=lambda row: row["kept"]), label, f"C{number}o-")
        published = [row for row in rows if row["setting"].startswith("published")]
        if published:
            plot_points(axes, published, "published thresholds", "C5D")
        axes.axhline(0.25, color="0.6", linestyle=":", zorder=0)
        axes.set(title=folder.name, xlabel="kept visual tokens / all", xlim=(0, 1.03), ylim=(0, 1.03))
    panels[0, 0].set_ylabel("accuracy, all questions")
    named: dict[str, Any] = {}
    for axes in panels[0]:
        named |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    panels[0, -1].legend(named.values(), named.keys(), loc="lower right", fontsize=8)
    figure.tight_layout()
    figure.savefig(target, dpi=110)


def plot_points(axes: Any, rows: list[dict[str, Any]], label: str, style: str) -> None:
    means = [row["all"]["accuracy"] for row in rows]
    low = [max(0.0, mean - row["all"]["interval"][0]) for mean, row in zip(means, rows, strict=True)]
    high = [max(0.0, row["all"]["interval"][1] - mean) for mean, row in zip(means, rows, strict=True)]
    kept = [row["kept"] for row in rows]
    axes.errorbar(kept, means, yerr=[low, high], label=label, fmt=style, markersize=4, capsize=2)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    if (folder / "accuracy.json").exists():
        draw(folder / "train.jsonl", folder / "curves.png")
        draw_accuracy(folder / "accuracy.json", folder / "accuracy.png")
    else:
        draw_ablation(sorted(path.parent for path in folder.glob("*/accuracy.json")), folder / "accuracy.png")
