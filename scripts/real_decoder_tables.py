"""Tables and the plot of bench_real_decoder.py:
``python scripts/real_decoder_tables.py results/real_decoder/NAME``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from needle_tasks import TASKS, chance

from sttm_lmms.report.stats import clustered_interval, mcnemar_exact


def read_answers(folder: Path) -> pd.DataFrame:
    """A row for each answer: case, cells, task, clip, setting, right, kept, kept_mean (over decoder
    layers)."""
    rows = []
    for text in (folder / "cases.jsonl").read_text().splitlines():
        line = json.loads(text)
        key = {name: line[name] for name in ("case", "cells", "task", "clip")}
        for setting, right in line["right"].items():
            kept, mean = line["kept"][setting]
            rows.append({**key, "setting": setting, "right": right, "kept": kept, "kept_mean": mean})
    return pd.DataFrame(rows).drop_duplicates(["case", "cells", "task", "setting"], keep="last")


def accuracy(answers: pd.DataFrame) -> str:
    """``percent [95% interval]``, clustered by clip."""
    scores, clips = answers["right"].tolist(), answers["clip"].tolist()
    low, high = clustered_interval(scores, clips) or (0.0, 1.0)
    return f"{100 * answers['right'].mean():.0f} [{100 * low:.0f}-{100 * high:.0f}]"


def p_value(answers: pd.DataFrame, setting: str, against: str) -> str:
    """Exact paired test of two settings over the cases that both have, with the cases won and
    lost."""
    pairs = answers[answers["setting"].isin([setting, against])].pivot(
        index=["cells", "task", "case"], columns="setting", values="right"
    )
    if setting == against or not {setting, against} <= set(pairs.columns):
        return ""
    pairs = pairs.dropna()
    won = int((pairs[setting] > pairs[against]).sum())
    lost = int((pairs[setting] < pairs[against]).sum())
    return f"+{won} -{lost}, p={mcnemar_exact(lost, won):.2g}"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in body)]) + "\n"


def accuracy_table(answers: pd.DataFrame) -> str:
    """A row for each setting, a column for each task; accuracy in percent."""
    tasks = [task for task in TASKS if task in set(answers["task"])]
    settings = list(dict.fromkeys(answers["setting"]))
    rows = [["setting", "kept", "mean over layers", *tasks]]
    counts = answers[answers["setting"] == "all"].groupby("task")["case"].nunique()
    rows.append(["cases", "", "", *(str(counts.get(task, 0)) for task in tasks)])
    rows.append(["chance", "", "", *(f"{100 * chance(task):.0f}" for task in tasks)])
    for setting in settings:
        mine = answers[answers["setting"] == setting]
        cells = []
        for task in tasks:
            part = mine[mine["task"] == task]
            fewer = f" (of {len(part)})" if len(part) < counts.get(task, 0) else ""
            cells.append(accuracy(part) + fewer if len(part) else "")
        rows.append([setting, f"{mine['kept'].mean():.1%}", f"{mine['kept_mean'].mean():.1%}", *cells])
    return markdown(rows)


def paired_table(answers: pd.DataFrame) -> str:
    """Each setting against all tokens, and against STTM at its budget and start layer, over the
    cases both answered."""
    rows = [["setting", "answers", "right", "against all tokens", "against STTM"]]
    for setting in dict.fromkeys(answers["setting"]):
        sttm = " ".join(["sttm", *setting.split(" ")[1:]])
        mine = answers[answers["setting"] == setting]
        tests = (p_value(answers, setting, other) for other in ("all", sttm))
        rows.append([setting, str(len(mine)), accuracy(mine), *tests])
    return markdown(rows)


def missing(answers: pd.DataFrame, about: dict[str, Any]) -> list[str]:
    """What the plan has and the answers have not, one line for each kind of cells."""
    planned = about["planned"]
    lines = []
    for cells in ("footage", "words"):
        part = answers[answers["cells"] == cells]
        run = {task: part[part["task"] == task]["case"].nunique() for task in planned["tasks"]}
        short = [f"{task} {count}" for task, count in run.items() if count < planned["cases"]]
        if short:
            lines.append(f"- {cells}: of {planned['cases']} planned cases each, run: {', '.join(short)}")
        absent = [name for name in planned["settings"] if len(part) and name not in set(part["setting"])]
        if absent:
            lines.append(f"- {cells}: settings without an answer: {', '.join(absent)}")
    return lines + [f"- `{name}`: not asked, {reason}" for name, reason in about["not_asked"].items()]


def write_tables(folder: Path) -> None:
    """Write ``accuracy.md`` and, where matplotlib is installed, ``accuracy.png``."""
    answers = read_answers(folder)
    about = json.loads((folder / "about.json").read_text())
    parts = []
    for cells, part in answers.groupby("cells"):
        parts += [f"## Cells: {cells}\n", accuracy_table(part), "", paired_table(part), ""]
    parts += ["## Planned and not run\n", *missing(answers, about), ""]
    digests = ", ".join(f"{name} sha256 {value[:8]}" for name, value in about["digests"].items())
    versions = f"torch {about['torch']}, transformers {about['transformers']}"
    parts.append(f"`{about['command']}`, {about['device']}, {versions}, {about['date']}; {digests}.")
    (folder / "accuracy.md").write_text("\n".join(parts) + "\n")
    try:
        plot(answers, folder / "accuracy.png")
    except ImportError:
        print("matplotlib is not installed: no plot")


def plot(answers: pd.DataFrame, path: Path) -> None:
    """One needle of one cell: accuracy over kept share; camouflaged needles at 30%: over their
    cosine."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    answers = answers[~answers["setting"].str.contains("@")]
    answers = answers.assign(method=answers["setting"].str.split(" ").str[0])
    needle, hidden = answers["task"] == "needle", answers["task"].str.startswith("camouflage")
    kinds = sorted(answers["cells"].unique())
    size = (10, 3.8 * len(kinds))
    figure, panels = plt.subplots(len(kinds), 2, figsize=size, layout="constrained", sharey=True, squeeze=False)
    for (left, right), cells in zip(panels, kinds, strict=True):
        plain, camouflaged = (part[part["cells"] == cells] for part in (answers[needle], answers[hidden]))
        for number, method in enumerate(dict.fromkeys(answers["method"])):
            style = {"marker": "o", "markersize": 4, "color": f"C{number % 10}", "label": method}
            if method == "all":
                style |= {"linestyle": ":", "color": "0.4", "label": "all tokens"}
            points = plain[plain["method"] == method].groupby("setting")[["kept", "right"]].mean().sort_values("kept")
            left.plot(points["kept"], points["right"], **style)
            curve = camouflaged[camouflaged["setting"].isin(["all", f"{method} 30%"])]
            curve = curve[curve["method"] == method]
            curve = curve.groupby(curve["task"].str.split(" ").str[1].astype(float))["right"].mean()
            right.plot(curve.index, curve.to_numpy(), **style)
        left.set(title=f"{cells}: needle of one cell", xlabel="kept visual tokens / all", ylabel="accuracy")
        right.set(title=f"{cells}: camouflaged needle, 30%", xlabel="cosine of needle and surroundings", ylim=(0, 1.02))
        right.axhline(chance("camouflage"), color="0.8", zorder=0)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    write_tables(Path(sys.argv[1]))
