"""The page with sliders: its data, its independence of other files, and what a browser shows."""

import json
import re
import shutil
import subprocess
from html import unescape

import numpy as np
import pytest

from sttm_lmms.report.page import Setting, render_page
from sttm_lmms.report.pictures import TokenMap

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FRAMES = np.full((2, 60, 80, 3), 100, dtype=np.uint8)


@pytest.fixture
def settings():
    merged = TokenMap(np.array([[[0, 0], [0, 0]], [[0, 1], [-1, 2]]]), np.array([0, 1, 1]))
    full = TokenMap(np.arange(8).reshape(2, 2, 2), np.repeat([0, 1], 4))
    return [Setting("all", full), Setting("half </script>", merged, {"spatial_threshold": 0.81234, "steps": 3})]


def data_of(html):
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', html, re.DOTALL)[1])


def test_data(settings):
    html = render_page(FRAMES, settings, "A <b>title</b>")
    assert "<title>A &lt;b&gt;title&lt;/b&gt;</title>" in html
    data = data_of(html)
    assert data["grid"] == [2, 2, 2]
    assert len(data["frames"]) == len(data["colours"]) == 2
    assert all(frame.startswith("data:image/jpeg;base64,") for frame in data["frames"])
    half = data["settings"][1]
    assert half["name"] == "half </script>"
    assert half["source"] == [0, 0, 0, 0, 0, 1, -1, 2]
    assert half["home"] == [0, 1, 1]
    assert half["kept"] == [1, 2]
    assert half["info"] == "spatial_threshold 0.8123, steps 3"


def test_loads_nothing(settings):
    html = render_page(FRAMES, settings, "toy")
    assert not re.search(r"""\b(src|href)\s*=\s*["']""", html)
    assert "http" not in html


def test_grids_that_differ_are_refused(settings):
    other = Setting("other", TokenMap(np.zeros((2, 1, 1), dtype=int), np.zeros(1, dtype=int)))
    with pytest.raises(ValueError, match="do not go together"):
        render_page(FRAMES, [*settings, other], "toy")
    with pytest.raises(ValueError, match="1 frames and token grids"):
        render_page(FRAMES[:1], settings, "toy")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium found: pages are checked in a browser only where one is")
def test_in_a_browser(settings, tmp_path):
    # The probe runs after the page's own start, uses it like a reader, and leaves what it saw in
    # the title.
    probe = """<script>
    const at = (x, y) => [...picture.getContext("2d").getImageData(
      Math.round(x * picture.width), Math.round(y * picture.height), 1, 1).data].slice(0, 3);
    const event = (type, target, x, y) => {
      const box = target.getBoundingClientRect();
      const place = { clientX: box.left + x * box.width, clientY: box.top + y * box.height };
      target.dispatchEvent(new PointerEvent(type, place));
    };
    Promise.all(images.map(image => image.decode())).then(() => setTimeout(() => {
      const seen = { merged: at(.4, .4), kept: at(.75, .25), dropped: at(.25, .6) };
      seen.start = byId("headline").textContent + " / " + byId("frameName").textContent;
      event("pointermove", picture, .25, .25);
      seen.pointed = byId("told").textContent;
      event("pointermove", picture, .25, .75);
      seen.pointedDropped = byId("told").textContent;
      event("click", strip, .1, .5);
      seen.clicked = byId("frameName").textContent;
      byId("play").click();
      seen.playing = byId("play").getAttribute("aria-pressed");
      byId("play").click();
      byId("setting").value = 0;
      byId("setting").dispatchEvent(new Event("input"));
      seen.all = byId("settingName").textContent + " / " + byId("headline").textContent;
      document.title = JSON.stringify(seen);
    }, 50));</script></body>"""
    page = tmp_path / "page.html"
    page.write_text(render_page(FRAMES, settings, "toy").replace("</body>", probe), encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom"]
    url = page.as_uri() + "#setting=1&frame=1"
    html = subprocess.run([*command, url], capture_output=True, text=True, check=True, timeout=120).stdout
    seen = json.loads(unescape(re.search("<title>(.*?)</title>", html)[1]))
    colour = [int(c) for c in re.findall(r"\d+", data_of(html)["colours"][0])]
    assert seen["merged"] == pytest.approx([(100 + c) / 2 for c in colour], abs=4)
    assert seen["kept"] == pytest.approx([100] * 3, abs=4)
    assert max(seen["dropped"]) < 40
    numbers = "3 of 8 visual tokens kept (37.5%). (spatial_threshold 0.8123, steps 3)"
    assert seen["start"] == f"{numbers} / 1: 2 of 4 kept"
    assert seen["pointed"] == "Token 0 stands in frame 0 for 5 cell(s) of frame(s) 0, 1."
    assert seen["pointedDropped"] == "This cell was dropped."
    assert seen["clicked"] == "0: 1 of 4 kept"
    assert seen["playing"] == "true"
    assert seen["all"] == "all / 8 of 8 visual tokens kept (100.0%)."
