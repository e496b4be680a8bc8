"""The HTML pages in a real browser: headless Chromium runs their scripts and prints the page that
comes out."""

import json
import re
import shutil
import subprocess
from html import unescape

import pytest

from sttm_lmms.report.render import render
from sttm_lmms.report.runs import load_runs
from sttm_lmms.report.table import build_table

pytest.importorskip("pandas")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium found: pages are checked in a browser only where one is"),
    pytest.mark.slow,
]


def dump(page, fragment="", width=1400):
    """The page's HTML after its scripts ran."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900", "--dump-dom"]
    command.append(page.as_uri() + fragment)
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def column(html, number):
    """Texts of one column of the first table."""
    body = re.search(r"<tbody>(.*?)</tbody>", html, re.DOTALL)[1]
    rows = re.findall(r"<tr.*?>(.*?)</tr>", body, re.DOTALL)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)[number] for row in rows]
    return [re.sub(r"<[^>]+>", "", cell).strip() for cell in cells]


@pytest.fixture(scope="module")
def page(recorded, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "board.html"
    path.write_text(render(build_table(load_runs([recorded]), paper=True), "html"), encoding="utf-8")
    return path


def accuracies(texts):
    return [float(text.split()[0]) for text in texts if text]


def test_sorts_numbers_both_ways_with_gaps_last(page):
    falling = dump(page, "#sort=table1,3,descending")
    rising = dump(page, "#sort=table1,3,ascending")
    assert accuracies(column(falling, 3)) == sorted(accuracies(column(falling, 3)), reverse=True)
    assert accuracies(column(rising, 3)) == sorted(accuracies(column(rising, 3)))
    for html in (falling, rising):
        assert column(html, 3)[-1] == "", "the 72B rows have no VNBench number"
        assert len(re.findall(r"<th[^>]* aria-sort=", html)) == 1
    assert 'aria-sort="descending"' in falling


def test_sorts_words(page):
    names = column(dump(page, "#sort=table1,0,ascending"), 0)
    assert names == sorted(names, key=str.lower)
    assert names[0] == "dummy"


def test_a_click_sorts_and_a_second_click_turns_round(page, tmp_path):
    clicks = "<script>for (let n = 0; n < 2; n++) document.querySelectorAll('thead button')[3].click();</script>"
    clicked = tmp_path / "clicked.html"
    clicked.write_text(page.read_text(encoding="utf-8").replace("</body>", clicks + "</body>"), encoding="utf-8")
    html = dump(clicked)
    assert 'aria-sort="ascending"' in html
    assert accuracies(column(html, 3)) == sorted(accuracies(column(html, 3)))


def test_an_address_that_names_nothing_changes_nothing(page):
    assert column(dump(page, "#sort=table9,99,up"), 0) == column(dump(page), 0)


@pytest.mark.parametrize("width", [1200, 1400])
def test_what_a_reader_wants_is_seen_without_scrolling(page, tmp_path, width):
    """The right edges of the first table's columns, with the paper's six benchmarks in it."""
    probe = """<script>
    const heads = [...document.querySelector("thead").rows[0].cells];
    document.title = JSON.stringify(Object.fromEntries(heads.map(head =>
      [head.textContent.trim(), head.getBoundingClientRect().right])));
    </script></body>"""
    probed = tmp_path / "probed.html"
    probed.write_text(page.read_text(encoding="utf-8").replace("</body>", probe), encoding="utf-8")
    edges = json.loads(unescape(re.search("<title>(.*?)</title>", dump(probed, width=width))[1]))
    seen = [name for name, right in edges.items() if right <= width - 20]
    assert {"VNBench", "NExT-QA", "Mean", "Relative", "Kept", "TTFT"} <= set(seen)
