"""Every task folder says where its data come from and how it is scored."""

import pytest

from sttm_lmms.benchmarks import FORMATS
from sttm_lmms.benchmarks.prepare.report import PUBLISHED_SIZES
from sttm_lmms.benchmarks.presets import resolve_frames


@pytest.mark.parametrize("benchmark", FORMATS)
def test_readme(tasks_folder, benchmark):
    text = (tasks_folder / benchmark / "README.md").read_text()
    for heading in (
        "| source |",
        "| licence |",
        "| size |",
        "| files |",
        "| frames |",
        "**Get it.**",
        "**Scores.**",
        "**Release format.**",
    ):
        assert heading in text
    assert f"`sttm_{benchmark}`" in text
    assert f"sttm-lmms prepare {benchmark} --raw" in text
    assert "lmms-eval" in text
    questions, videos = PUBLISHED_SIZES[benchmark]
    assert f"{questions:,}" in text
    assert f"{videos:,}" in text or questions == videos
    assert f"{resolve_frames('llava_video', benchmark).max_frames} at 1 fps" in text
