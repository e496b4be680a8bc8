"""``python -m sttm_lmms eval`` for launchers, without the start's longest part."""

from __future__ import annotations

import sys

from warm_ranks import without_default_tasks

from sttm_lmms.cli import main

if __name__ == "__main__":
    without_default_tasks()
    main(["eval", *sys.argv[1:]])
