"""Plots: files, determinism, and the marks that keep the paper's and flagged points apart."""

import pytest

from sttm_lmms.report.runs import load_runs
from sttm_lmms.report.table import build_table

pytest.importorskip("matplotlib")
pytest.importorskip("pandas")
from sttm_lmms.report.plots import draw_plots, save_plots, to_svg


@pytest.fixture(scope="module")
def table(recorded):
    return build_table(load_runs([recorded]), paper=True)


def test_files(table, tmp_path):
    files = save_plots(draw_plots(table), tmp_path / "plots")
    names = [f"{name}.{kind}" for name in ("accuracy_vs_kept", "accuracy_vs_ttft") for kind in ("png", "svg")]
    assert [file.name for file in files] == names
    assert all(file.stat().st_size > 10_000 for file in files)


def test_svg_is_the_same_every_time(table):
    first, second = (to_svg(draw_plots(table)["accuracy_vs_kept"], "x") for _ in range(2))
    assert first == second
    assert "<dc:date>" not in first


def test_points_stand_where_the_table_says(table):
    figure = draw_plots(table)["accuracy_vs_kept"]
    panel = next(panel for panel in figure.axes if panel.get_title() == "VNBench")
    points = {container.lines[0].get_xydata().tobytes(): container for container in panel.containers}
    own = table[(table["benchmark"] == "VNBench") & (table["model"] == "tiny/llava-video") & table["comparable"]]
    sttm = own[own["method"] == "sttm"].sort_values("kept_mean")
    assert (sttm[["kept_mean", "accuracy"]].to_numpy() * 100).tobytes() in points


def test_legend_tells_papers_and_flagged_points(table):
    figure = draw_plots(table)["accuracy_vs_kept"]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "LLaVA-Video-7B, sttm (paper)" in labels
    assert "tiny/llava-video, sttm, not comparable" in labels
    assert len(labels) == len(set(labels))


def test_no_texts_overlap(table):
    for figure in draw_plots(table).values():
        figure.draw_without_rendering()
        boxes = [text.get_window_extent() for text in figure.legends[0].get_texts()]
        for panel in figure.axes:
            if panel.get_visible():
                boxes += [panel.title.get_window_extent(), panel.xaxis.label.get_window_extent()]
                boxes.append(panel.yaxis.label.get_window_extent())
        for n, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[n + 1 :])


def test_methods_at_equal_budgets_do_not_hide_each_other(table):
    import pandas as pd

    own = table[(table["benchmark"] == "VNBench") & (table["model"] == "tiny/llava-video") & table["comparable"]]
    other = own[own["method"] == "sttm"].assign(method="random", accuracy=0.5)
    figure = draw_plots(pd.concat([own, other]))["accuracy_vs_kept"]
    (panel,) = figure.axes
    sttm, random = (
        sorted(container.lines[0].get_xdata())
        for container in panel.containers
        if len(container.lines[0].get_xdata()) > 1
    )
    assert all(0.5 < abs(a - b) < 1 for a, b in zip(sttm, random, strict=True))
    baseline = next(container for container in panel.containers if len(container.lines[0].get_xdata()) == 1)
    assert baseline.lines[0].get_xdata() == [100]


def test_one_benchmark_gets_a_panel_for_each_model(table):
    one = table[(table["benchmark"] == "VNBench") & table["kept_mean"].notna()]
    figure = draw_plots(one)["accuracy_vs_kept"]
    titles = [panel.get_title() for panel in figure.axes if panel.get_visible()]
    assert "tiny/llava-video on VNBench" in titles
    assert len(titles) == one["model"].nunique()
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"sttm", "sttm (paper)", "sttm, not comparable"} <= set(labels)


def test_nothing_to_draw(table):
    assert draw_plots(table[table["model"] == "dummy"]) == {}
