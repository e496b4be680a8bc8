"""The command ``coverage``: clips through a vision tower, or a file of features, to a table and a
plot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from sttm_lmms.cli.coverage import as_markdown, coverage
from sttm_lmms.methods import method_names
from sttm_lmms.report.coverage import quantisation_error
from sttm_lmms.video import write_video
from sttm_lmms.video.tower import clip_features, vision_tower

NEED_A_DECODER = {"fastv", "framefusion", "dycoke", "streaming_llm"}
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.filterwarnings("ignore::sttm_lmms.methods.base.BudgetWarning")


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    generator = torch.Generator().manual_seed(0)
    still = torch.randn(1, 6, 6, 24, generator=generator)
    clips = {f"{n}.mp4": still + 0.3 * torch.randn(4, 6, 6, 24, generator=generator) for n in range(2)}
    file = tmp_path_factory.mktemp("features") / "features.safetensors"
    save_file(clips, file)
    return file


def test_every_method_that_reads_features(features, tmp_path, capsys):
    coverage(features=features, budgets="0.5,0.1", out=tmp_path)
    rows = pd.read_csv(tmp_path / "coverage.csv")
    names = [name for name in method_names() if name not in NEED_A_DECODER and ":" not in name]
    assert set(names) <= set(rows["method"])
    assert not NEED_A_DECODER & set(rows["method"])
    assert (rows.groupby(["method", "budget"]).size() == 2).all()
    assert rows["coverage"].between(0, 1).all()
    assert (rows["error"] >= 0).all()  # above 1 where one mean for all tokens would have been nearer
    exact = rows[rows["method"].isin(["sttm", "random", "cluster"])]
    assert (exact["kept"] - exact["budget"]).abs().max() < 1 / 144
    printed = capsys.readouterr().out
    assert (tmp_path / "coverage.md").read_text() in printed
    assert "| `cluster` |" in printed
    # On a still scene with noise an average is nearer than any one token.
    error = rows[rows["budget"] == 0.1].groupby("method")["error"].mean()
    assert error["cluster"] < error["random"]
    assert {path.name for path in tmp_path.iterdir()} == {f"coverage.{end}" for end in ("csv", "md", "png", "svg")}


@pytest.mark.parametrize("kind", ["vit", "convnext"])
def test_clips_through_any_vision_tower(kind, tmp_path):
    from transformers import BitImageProcessor, ConvNextConfig, ConvNextModel, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    if kind == "vit":
        settings = {"image_size": 56, "patch_size": 14, "num_attention_heads": 2, "num_hidden_layers": 1}
        model = Dinov2Model(Dinov2Config(hidden_size=16, **settings))
    else:
        model = ConvNextModel(ConvNextConfig(hidden_sizes=[8, 8, 8, 16], depths=[1, 1, 1, 1]))
    tower = tmp_path / kind
    model.save_pretrained(tower)
    BitImageProcessor(size={"height": 56, "width": 56}, do_center_crop=False).save_pretrained(tower)
    pixels = np.random.default_rng(0).integers(0, 255, (5, 64, 64, 3), dtype=np.uint8)
    clip = write_video(tmp_path / "clip.mp4", pixels, fps=2)
    found = clip_features(clip, vision_tower(str(tower)), 4)
    assert found.shape == ((4, 4, 4, 16) if kind == "vit" else (4, 1, 1, 16))

    coverage([clip], str(tower), methods="random", budgets="0.5", frames=4, out=tmp_path / "out")
    (row,) = pd.read_csv(tmp_path / "out" / "coverage.csv").itertuples()
    flat = found.float().flatten(0, 2)
    draw = torch.randperm(len(flat), generator=torch.Generator().manual_seed(0))[: len(flat) // 2]
    assert row.error == pytest.approx(quantisation_error(flat, flat[draw]), abs=1e-4)


@pytest.mark.parametrize("folder", sorted((ROOT / "results" / "coverage").glob("*/")), ids=lambda path: path.name)
def test_committed_tables_say_what_their_rows_say(folder):
    rows = pd.read_csv(folder / "coverage.csv")
    assert as_markdown(rows) == (folder / "coverage.md").read_text()
    readme = (folder.parent / "README.md").read_text()
    cells = as_markdown(rows).split("| `cluster` | ")[1].split(" |\n")[0].split(" | ")
    assert " | ".join(cells[1:]) in readme


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give clips and --tower, or --features"),
        ({"clips": ["a.mp4"]}, "give clips and --tower, or --features"),
        ({"methods": "fastv"}, "--methods fastv: it reads attention"),
        ({"methods": "dycoke"}, "edits the KV cache"),
        ({"methods": "streaming_llm"}, "streaming_llm: it"),
        ({"methods": "clusters"}, "cluster"),
        ({"budgets": "30"}, "budget=30"),
    ],
)
def test_mistakes(arguments, message, features, tmp_path):
    given = {} if message.startswith("give") else {"features": features}
    with pytest.raises(ValueError, match=message):
        coverage(**{**given, **arguments}, out=tmp_path)
