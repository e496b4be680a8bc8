"""``sttm-lmms bench``: the benchmarks of a checkout, by name."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from sttm_lmms.errors import STTMError, unknown


def bench(args: Sequence[str]) -> None:
    """Run ``scripts/bench_NAME.py`` with the rest of the arguments; ``--help`` behind the name explains it.

    Raises:
        STTMError: this is an installed package without the scripts.
        ValueError: there is no such benchmark.
    """
    scripts = Path(__file__).parents[2] / "scripts"
    found = {path.stem.removeprefix("bench_"): path for path in sorted(scripts.glob("bench_*.py"))}
    if not found:
        raise STTMError("the benchmarks are scripts of the repository: clone it and run them there")
    if not args or args[0].startswith("-"):
        print(f"sttm-lmms bench {{{','.join(found)}}} [arguments]; --help behind the name explains it")
        return
    if args[0] not in found:
        raise unknown("benchmark", args[0], found)
    script = found[args[0]]
    sys.argv = [str(script), *args[1:]]
    sys.path.insert(0, str(scripts))
    runpy.run_path(str(script), run_name="__main__")
