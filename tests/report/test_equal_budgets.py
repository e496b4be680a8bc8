"""Methods at equal budgets, on recorded runs of one method and copies of them under the name of
another."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from sttm_lmms.report.flops import DecoderShape, prefill_flops
from sttm_lmms.report.layout import equal_budget_json
from sttm_lmms.report.render import render
from sttm_lmms.report.runs import load_runs
from sttm_lmms.report.stats import mcnemar_exact
from sttm_lmms.report.table import build_table

SHAPE = DecoderShape(layers=28, hidden=3584, heads=28, kv_heads=4, head_dim=128, mlp=18944)
MODEL = "tiny/llava-video"
WRONG = 5


def copy_as(method: str, source: Path, out: Path, *, wrong: int = 0, layer_tokens: float | None = None) -> None:
    """A recorded run as if another method had made it, with ``wrong`` right answers of VNBench
    turned round."""
    for file in source.rglob("*"):
        if file.is_dir():
            continue
        out.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".json":
            content = json.loads(file.read_text())
            content["config"]["model_args"] += f",method={method}"
            (out / file.name).write_text(json.dumps(content))
            continue
        left, lines = wrong, []
        for line in map(json.loads, file.read_text().splitlines()):
            record = line["token_counts"][0]
            if "provenance" in record:
                record["provenance"]["method"] = method
            if layer_tokens is not None:
                record["layer_tokens"] = layer_tokens
            if "vnbench" in file.name and left and line["accuracy"]["score"] == 1:
                line["accuracy"]["score"], left = 0.0, left - 1
            lines.append(json.dumps(line))
        (out / file.name).write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def runs(recorded, tmp_path_factory):
    folder = tmp_path_factory.mktemp("grid")
    for name in ("full", "sttm-50", "sttm-30"):
        shutil.copytree(recorded / name, folder / name)
    copy_as("random", recorded / "sttm-50", folder / "random-50", wrong=WRONG)
    copy_as("fastv", recorded / "sttm-50", folder / "fastv-50", layer_tokens=784 / 2 + 1)
    return load_runs([folder])


@pytest.fixture(scope="module")
def table(runs):
    return build_table(runs, reference="sttm", shapes={MODEL: SHAPE})


def rows_of(table):
    return json.loads(equal_budget_json(table))["rows"]


def row(table, method, budget, task="vnbench"):
    (found,) = [r for r in rows_of(table) if (r["method"], r["budget"], r["task"]) == (method, budget, task)]
    return SimpleNamespace(**found)


def test_one_row_for_each_method_budget_and_task(table):
    rows = rows_of(table)
    expected = [("none", None), ("sttm", 0.5), ("sttm", 0.3), ("random", 0.5), ("fastv", 0.5)]
    assert sorted({(r["method"], r["budget"]) for r in rows}, key=str) == sorted(expected, key=str)
    assert {r["task"] for r in rows} == {"vnbench", "sttm_videomme"}
    assert len(rows) == 2 * len(expected)


def test_the_paired_difference_is_to_the_reference_at_the_same_budget(table):
    against = row(table, "random", 0.5).against
    assert (against["reference"], against["won"], against["lost"]) == ("sttm", 0, WRONG)
    difference = row(table, "random", 0.5).accuracy - row(table, "sttm", 0.5).accuracy
    assert against["difference"] == pytest.approx(difference)
    assert against["difference"] == pytest.approx(-WRONG / against["questions"])
    assert against["p"] == mcnemar_exact(WRONG, 0)
    assert row(table, "sttm", 0.5).against is None
    assert row(table, "none", None).against is None
    assert row(table, "fastv", 0.5).against["difference"] == 0


def test_another_reference(runs):
    table = build_table(runs, reference="random")
    assert row(table, "sttm", 0.5).against["won"] == WRONG
    assert row(table, "sttm", 0.3).against is None, "random has no such budget"
    text = render(table, "md", reference="random")
    (line,) = [line for line in text.splitlines() if line.startswith("At 50%: ")]
    assert "More accurate than random at the same budget: " in line
    assert "sttm (tiny/llava-video, vnbench): +" in line


def test_controls_are_compared_with_all_tokens_not_with_themselves(runs, recorded, tmp_path):
    """Fewer tokens without reduction, other frames and no video, as rows and sentences."""
    for name, argument in {"later": "phase=0.5", "blind": "video=none"}.items():
        copy_as("none", recorded / "full", tmp_path / name, wrong=WRONG)
        (file,) = (tmp_path / name).glob("*.json")
        content = json.loads(file.read_text())
        content["config"]["model_args"] += f",{argument}"
        file.write_text(json.dumps(content))
    table = build_table([*runs, *load_runs([tmp_path])], reference="sttm", shapes={MODEL: SHAPE})
    assert row(table, "sttm", 0.5).flops_factor > 1.8
    text = render(table, "md", reference="sttm")
    plain = row(build_table(runs, reference="sttm"), "none", None)
    share = WRONG / plain.questions
    assert f"(tiny/llava-video, vnbench): {share:.1%} change, {WRONG} lost, 0 won." in text
    assert f"No video (tiny/llava-video, vnbench): {plain.accuracy - share:.1%} right" in text


def test_tokens_a_layer_come_from_the_records_or_from_the_start_layer(table):
    assert row(table, "none", None).layer_share == 1
    assert row(table, "fastv", 0.5).layer_tokens == 784 / 2 + 1
    half = row(table, "random", 0.5)  # start layer 2 of 28
    assert half.layer_share == pytest.approx((2 + 26 * half.kept_share) / 28)


def test_a_method_without_a_start_layer_has_the_mean_of_its_run(runs):
    """As for methods that reduce in many layers, in result files without the number for each
    answer."""
    (random,) = [run for run in runs if run.model_args.get("method") == "random"]
    unsaid = replace(random.tasks[0].provenance, settings={"budget": 0.5})
    alone = replace(
        random,
        tasks=(replace(random.tasks[0], provenance=unsaid),),
        summary=replace(random.summary, layer_tokens_mean=500.0),
    )
    (found,) = rows_of(build_table([alone], reference="sttm", shapes={MODEL: SHAPE}))
    assert found["layer_tokens"] == 500
    assert found["flops"] > 0


def test_operations_by_count(table):
    full, half = row(table, "none", None), row(table, "sttm", 0.5)
    assert full.flops == pytest.approx(prefill_flops(SHAPE, text=40, visual=784, kept=784, layer_tokens=784))
    assert 1.8 < half.flops_factor < 2
    assert full.flops_factor == 1
    assert half.flops == pytest.approx(full.flops / half.flops_factor)


def test_no_count_without_the_decoders_sizes(runs):
    assert {r["flops"] for r in rows_of(build_table(runs, reference="sttm"))} == {None}


def test_the_printed_table(table):
    text = render(table, "md", title="Grid", command="sttm-lmms compare ...", reference="sttm")
    assert text.startswith("# Grid\n\nvnbench: 24 questions on 6 videos; sttm_videomme: 24 questions on 6 videos.\n")
    assert "No method is more accurate than sttm at the same budget here." in text
    (line,) = [line for line in text.splitlines() if line.startswith("| tiny/llava-video | random | 50% |")]
    assert f"| 0 | {WRONG} | {mcnemar_exact(WRONG, 0):.3f} |" in line
    order = [line.split(" | ")[1] for line in text.splitlines() if line.startswith("| tiny/llava-video | ")]
    assert order == ["none", "sttm", "fastv", "random", "sttm"], "all tokens, then by budget, the reference first"
    assert "Made with `sttm-lmms compare ...`" in text


def test_the_committed_table_is_that_of_the_rows_beside_it():
    """results/compare: its runs are not committed, its rows are."""
    folder = Path(__file__).parents[2] / "results" / "compare"
    content = json.loads((folder / "compare.json").read_text())
    rows = pd.DataFrame(content["rows"])
    against = pd.DataFrame([one or {} for one in rows.pop("against")]).rename(
        columns={"won": "reference_won", "lost": "reference_lost", "p": "reference_p"}
    )
    rows["flags"] = rows.pop("notes").str.join("; ")
    rows = rows.rename(columns={"budget": "kept_requested", "kept_share": "kept_mean"}).join(
        against[["reference", "difference", "reference_won", "reference_lost", "reference_p"]]
    )
    table = rows.assign(interval="video", reported=None)
    text = render(table, "md", title="Methods at equal budgets", command=content["command"], reference="sttm")
    assert text == (folder / "compare.md").read_text()
    assert json.loads(equal_budget_json(table, content["command"])) == content


def test_sizes_from_either_layout():
    flat = {"num_hidden_layers": 28, "hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4}
    flat["intermediate_size"] = 18944
    assert DecoderShape.from_config(flat) == DecoderShape.from_config({"text_config": flat}) == SHAPE
    with pytest.raises(KeyError):
        DecoderShape.from_config({"hidden_size": 4})


def test_the_count_is_that_of_the_layers_one_by_one():
    def by_layer(seen):
        weights = 3584 * 128 * (28 + 4 + 4 + 28) + 3 * 3584 * 18944
        return sum(2 * weights * n + 4 * 28 * 128 * n * n / 2 for n in seen)

    seen = [1000 + 40] * 3 + [300 + 40] * 25
    mean = (3 * 1000 + 25 * 300) / 28
    count = prefill_flops(SHAPE, text=40, visual=1000, kept=300, layer_tokens=mean)
    assert count == pytest.approx(by_layer(seen))
