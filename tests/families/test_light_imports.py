"""A machine that only runs stored features or bare models needs no video or image packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CHECKPOINT = Path(__file__).parents[1] / "golden" / "llava" / "llava_video_tiny"

SCRIPT = """
import sys
for name in ("torchvision", "qwen_vl_utils", "decord", "lmms_eval"):
    sys.modules[name] = None
from sttm_lmms.families import get_family
from pathlib import Path
print(type(get_family("llava_video").load_model(Path(sys.argv[1]))).__name__)
"""


@pytest.mark.slow
def test_loading_without_optional_packages():
    run = subprocess.run([sys.executable, "-c", SCRIPT, str(CHECKPOINT)], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "LlavaOnevisionForConditionalGeneration", run.stderr[-2000:]
