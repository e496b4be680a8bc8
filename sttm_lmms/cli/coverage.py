"""``sttm-lmms coverage``: how well each method's tokens stand for a video, without a language
model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from matplotlib.figure import Figure

    from sttm_lmms.methods.base import Method

COSINE = 0.9


def coverage(
    clips: Annotated[list[Path] | None, typer.Argument(help="Video files.", show_default=False)] = None,
    tower: Annotated[str | None, typer.Option(help="Vision tower on the hub or in a folder, for the clips.")] = None,
    features: Annotated[
        Path | None, typer.Option(help="Instead of clips: .safetensors with a [T, H, W, C] tensor for each.")
    ] = None,
    methods: Annotated[str | None, typer.Option(help="Names, such as sttm,cluster. Default: all that apply.")] = None,
    budgets: Annotated[str, typer.Option(help="Shares of the visual tokens to keep.")] = "0.5,0.3,0.15,0.1",
    frames: Annotated[int, typer.Option(help="Of each clip, spread evenly.", min=1)] = 16,
    out: Annotated[Path, typer.Option(help="Folder for the table and the plot.")] = Path("outputs/coverage"),
) -> None:
    """Reduce clips with each method at each budget; write quantisation error and coverage as a
    table and a plot.

    Methods that read attention need a language model and are left out.
    """
    import pandas as pd

    from sttm_lmms.report.coverage import measure
    from sttm_lmms.report.plots import save_plots

    names, shares = _methods(methods), [float(share) for share in budgets.split(",")]
    found = []
    for clip, tensor in _features(clips or [], tower, features, frames):
        typer.echo(f"{clip}: {'x'.join(map(str, tensor.shape))}", err=True)
        for name in names:
            for budget in shares:
                found.append((clip, name, budget, *measure(tensor, at_budget(name, budget), COSINE)))
    rows = pd.DataFrame(found, columns=["clip", "method", "budget", "kept", "error", "coverage"])
    out.mkdir(parents=True, exist_ok=True)
    rows.to_csv(out / "coverage.csv", index=False, float_format="%.4f", lineterminator="\n")
    (out / "coverage.md").write_text(as_markdown(rows), encoding="utf-8")
    typer.echo(as_markdown(rows))
    for file in [out / "coverage.md", out / "coverage.csv", *save_plots({"coverage": draw(rows)}, out)]:
        typer.echo(f"wrote {file}")


def at_budget(name: str, budget: float) -> Method:
    """The method at this share of tokens: exactly so many wherever it can."""
    from sttm_lmms.methods import get_method

    method: Any = get_method(name)
    return method(budget=budget, **({"floor": "join"} if name == "sttm" else {}))


def as_markdown(rows: pd.DataFrame) -> str:
    """One row a method: error and coverage in percent at each budget, means over clips; what a
    method keeps where that is not the budget."""
    means = rows.groupby(["method", "budget"], sort=False)[["kept", "error", "coverage"]].mean() * 100
    budgets = list(dict.fromkeys(rows["budget"]))
    lines = [
        f"Quantisation error / coverage at cosine {COSINE}, in percent, means over {rows['clip'].nunique()} clips "
        "(kept share where it is not the budget).",
        "",
        "| method | " + " | ".join(f"{budget:.0%}" for budget in budgets) + " |",
        "|---" + "|---:" * len(budgets) + "|",
    ]
    for name in dict.fromkeys(rows["method"]):
        cells = []
        for budget in budgets:
            kept, error, covered = means.loc[(name, budget)]
            note = f" (keeps {kept:.0f})" if abs(kept - 100 * budget) > 0.5 else ""
            cells.append(f"{error:.1f} / {covered:.0f}{note}")
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(rows: pd.DataFrame) -> Figure:
    """Error and coverage over the kept share, a line for each method; an error above 105% is
    outside."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    from sttm_lmms.report.plots import MARKERS

    tab20 = colormaps["tab20"]

    figure = Figure(figsize=(10, 5), layout="constrained")
    panels = figure.subplots(1, 2)
    names = list(dict.fromkeys(rows["method"]))
    labels = {"error": "quantisation error (%)", "coverage": f"tokens covered at cosine {COSINE} (%)"}
    for panel, (column, label) in zip(panels, labels.items(), strict=True):
        for number, name in enumerate(names):
            points = rows[rows["method"] == name].groupby("budget")[["kept", column]].mean() * 100
            marker, colour = MARKERS[(number + number // 10) % len(MARKERS)], tab20(number % 20)
            width = 2.5 if name == "sttm" else 1.2
            panel.plot(points["kept"], points[column], marker=marker, color=colour, linewidth=width, label=name)
        panel.set(xlabel="kept visual tokens (%)", ylabel=label, ylim=(0, 105))
        panel.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    return figure


def _methods(text: str | None) -> list[str]:
    from sttm_lmms.methods import method_names

    if text is None:
        return [name for name in method_names() if not _refusal(name)]
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if refusal := _refusal(name):
            raise ValueError(f"--methods {name}: it {refusal}, so it cannot be measured without a language model")
    return names


def _refusal(name: str) -> str:
    """Why a method cannot be measured here; "" if it can."""
    from dataclasses import fields

    from sttm_lmms.methods import get_method
    from sttm_lmms.methods.base import Method

    method: Any = get_method(name)
    if method.reads == "attention":
        return "reads attention"
    if "budget" not in {field.name for field in fields(method)}:
        return "has no budget"
    return "edits the KV cache" if method.cache_stages is not Method.cache_stages else ""


def _features(
    clips: Sequence[Path], tower: str | None, file: Path | None, frames: int
) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and ``[T, H, W, C]`` of each clip."""
    if (file is None) == (not clips) or bool(clips) != (tower is not None):
        raise ValueError("give clips and --tower, or --features alone")
    if file is not None:
        from safetensors.torch import load_file

        yield from load_file(file).items()
        return
    from sttm_lmms.video.tower import clip_features, vision_tower

    encode = vision_tower(str(tower))
    for clip in clips:
        yield clip.name, clip_features(clip, encode, frames)
