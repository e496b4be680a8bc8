"""What a reader gets: all formats, the same bytes for the same runs, escaped, and nothing loaded
from elsewhere."""

import csv
import io
import re

import pytest

from sttm_lmms.report.layout import leaderboard_page
from sttm_lmms.report.render import comparable_text, format_of, render
from sttm_lmms.report.runs import load_runs
from sttm_lmms.report.table import COLUMNS, build_table

pd = pytest.importorskip("pandas")


@pytest.fixture(scope="module")
def table(recorded):
    return build_table(load_runs([recorded]), paper=True)


def summary(table):
    """The first table of the page."""
    return leaderboard_page(table).tables[0][1]


@pytest.mark.parametrize("format", ["md", "csv", "latex", "html"])
def test_the_same_runs_give_the_same_text(recorded, table, format):
    assert render(build_table(load_runs([recorded]), paper=True), format) == render(table, format)


def test_markdown(table):
    text = render(table, "md", title="Toy")
    assert text.startswith("# Toy\n")
    (line,) = [line for line in text.splitlines() if line.startswith("| tiny/llava-video | sttm | budget 0.3 | 65")]
    assert "| 65.0 [43.3, 81.9] | 55.0 [32.4, 75.7] |" in line
    assert "| 29.0% (9.9–50.0) | 0.250 s (3.20×) | 227 | 2 | ⚠" in line
    assert "a reduction was asked for and nothing was reduced" in text
    assert "LLaVA-Video-7B (paper)" in text
    assert "arXiv 2507.07990" in text
    widths = {
        len(re.split(r"(?<!\\)\|", row)) for row in text.split("## All runs\n\n")[1].split("\n\n")[0].splitlines()
    }
    assert len(widths) == 1


def test_the_papers_legend_only_with_the_papers_rows(recorded):
    assert "paper" not in render(build_table(load_runs([recorded])), "md")


def test_csv_is_the_tidy_table(table):
    rows = list(csv.DictReader(io.StringIO(render(table, "csv"))))
    assert list(rows[0]) == list(COLUMNS)
    assert len(rows) == len(table)
    assert {row["source"] for row in rows} == {"run", "paper"}


def test_latex_is_balanced_and_escaped(table):
    text = render(table, "latex")
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2
    assert r"newline=no\_token" in text
    assert not re.search(r"(?<!\\)[%_#]", re.sub(r"(?m)^%.*$", "", text))
    columns = len(re.search(r"\\begin\{tabular\}\{(\w+)\}", text)[1])
    body = [line for line in text.split(r"\end{tabular}")[0].splitlines() if line.endswith(r"\\")]
    assert {len(re.split(r"(?<!\\)&", line)) for line in body} == {columns}


def test_html_loads_nothing(table):
    text = render(table, "html", plots={"A plot": '<?xml version="1.0"?><svg><g/></svg>'})
    assert not re.search(r"""(src|href)=["'](?!#)""", text)
    assert "@import" not in text
    assert "<svg><g/></svg>" in text
    assert "<?xml" not in text
    assert "prefers-color-scheme: dark" in text


def test_html_escapes_what_runs_say(table):
    hostile = table.assign(setting="<script>alert(1)</script>")
    text = render(hostile, "html")
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_html_sorts_by_the_first_number_of_a_cell(table):
    text = render(table, "html")
    assert re.search(r'data-sort="65.0"><span class="value">65.0</span> <span class="interval">\[43.3, 81.9\]', text)
    assert re.search(r'data-sort="0.250"><span class="value">0.250 s</span> <span class="interval">\(3.20×\)', text)
    assert 'data-sort=""' in text, "gaps come last"


def test_every_note_has_a_place(table):
    text = render(table, "html")
    assert set(re.findall(r'href="#(note\d+)"', text)) == set(re.findall(r'id="(note\d+)"', text))


def test_notes_name_the_benchmark_they_hold_for(table):
    partial = table.assign(flags=["odd" if n == 2 else "" for n in range(len(table))])
    assert leaderboard_page(partial).notes == ("VNBench: odd",)


def test_no_mean_over_a_single_benchmark(recorded):
    table = build_table(load_runs([recorded]))
    one = table[table["benchmark"] == "VNBench"]
    assert "Mean" not in summary(one).columns
    assert "Mean" in summary(table).columns


def test_a_mean_over_fewer_benchmarks_says_so(table):
    assert "70.5 (1 of 6)" in render(table, "md")


def test_unknown_format(table):
    with pytest.raises(ValueError, match=r"unknown format 'htm'\. Did you mean 'html'"):
        render(table, "htm")


def test_format_by_file_name(tmp_path):
    assert format_of(tmp_path / "board.tex") == "latex"
    with pytest.raises(ValueError, match=r"unknown file ending '\.doc'"):
        format_of(tmp_path / "board.doc")


def test_comparable_text_leaves_out_plots_and_the_command():
    assert comparable_text("a<svg width='1'>\n<g/></svg>b<svg></svg>c\nMade with `x`\nd") == "abc\n\nd"
    assert comparable_text("a\n% Made with `x`") == comparable_text("a\n% Made with `y`")


@pytest.mark.parametrize("format", ["md", "html", "latex"])
def test_the_command_is_in_the_table(table, format):
    assert "Made with" in render(table, format, command="sttm-lmms leaderboard runs")
    assert "Made with" not in render(table, format)


def test_what_all_rows_share_stands_above_them_once(recorded):
    table = build_table(load_runs([recorded]))
    ours = table[table["model"] == "tiny/llava-video"]
    more = ours.assign(
        setting=[f"{setting}, max_frames=16" for setting in ours["setting"]], machine="NVIDIA A100 bfloat16 sdpa"
    )
    text = render(more, "md")
    assert "All runs: max_frames=16, on NVIDIA A100 bfloat16 sdpa." in text
    assert text.count("max_frames=16") == 1
    assert summary(more).equals(summary(ours))
    other = ours.assign(model="other", setting=[f"{setting}, max_frames=8" for setting in ours["setting"]])
    text = render(pd.concat([more, other]), "md")
    assert "\n\ntiny/llava-video: max_frames=16, on NVIDIA A100 bfloat16 sdpa.\n\nother: max_frames=8.\n\n" in text


def test_how_much_to_keep_stays_in_its_row(recorded):
    table = build_table(load_runs([recorded]))
    one = table[table["setting"] == "budget 0.5"]
    assert leaderboard_page(one).shared == ()
    assert set(summary(one)["Setting"]) == {"budget 0.5"}


def test_columns_without_content_go(recorded):
    table = build_table(load_runs([recorded]))
    bare = table.assign(failed_videos=0, flags="", layer_tokens=None)
    assert {"Failed videos", "Notes", "Mean tokens a layer"}.isdisjoint(summary(bare).columns)
    full = table.assign(layer_tokens=[100.0 * n for n in range(len(table))])
    assert {"Failed videos", "Notes", "Mean tokens a layer"} <= set(summary(full).columns)
    assert "Mean tokens a layer: visual tokens" in render(full, "md")
    assert "Mean tokens a layer" not in render(bare, "md")


def test_tokens_of_a_question_are_their_mean_and_not_of_unreadable_videos(recorded):
    (run,) = load_runs([recorded / "sttm-30"])
    (task,) = [task for task in run.tasks if task.task == "vnbench"]
    kept = task.samples["kept_tokens"][task.samples["error"].isna()]
    table = build_table([run])
    assert table[table["task"] == "vnbench"]["kept_tokens"].tolist() == [pytest.approx(sum(kept) / len(kept))]


def test_the_accuracy_over_kept_share_stands_at_the_top(table):
    text = render(table, "html", plots={"First plot": "<svg>1</svg>", "Second plot": "<svg>2</svg>"})
    assert text.index("<svg>1") < text.index("<table") < text.index("<svg>2")
