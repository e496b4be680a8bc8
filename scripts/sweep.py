#!/usr/bin/env python
"""All cells of the paper's tables for one model, one after the other; `scripts/reproduce.sh all`
calls this.

    scripts/reproduce.sh all llava-video-7b
    scripts/reproduce.sh all llava-video-7b 8 --output outputs/night -- --limit 64

A cell whose folder holds a result file is skipped. A cell that was interrupted goes on: its answers
are in lmms-eval's response cache, in the same folder. A cell that fails does not stop the others;
the failed ones are listed at the end, each with its last line of output, and the status is 1.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from sttm_lmms.output import result_files

HERE = Path(__file__).parent
PRESETS = HERE.parent / "sttm_lmms" / "benchmarks" / "presets"
BUDGETS = ("100", "50", "30", "50-root2", "30-root2")
LAST_WORDS = 300


def cells(model: str, presets: Path = PRESETS) -> list[tuple[str, str]]:
    """(benchmark, budget) of each cell of a model, such as ``llava-video-7b``: where the paper has
    thresholds.

    Raises:
        ValueError: no table has this model.
    """
    family, _, size = model.rpartition("-")
    found = []
    for budget in BUDGETS:
        file = presets / f"paper-{'50' if budget == '100' else budget}.yaml"
        for entry in yaml.safe_load(file.read_text())["models"]:
            if (entry["family"], str(entry["size"])) == (family.replace("-", "_"), size):
                found += [(benchmark, budget) for benchmark in entry["thresholds"] if benchmark != "default"]
    if not found:
        raise ValueError(f"no table of the paper has the model {model!r}")
    return sorted(found, key=lambda cell: (list(dict.fromkeys(b for b, _ in found)).index(cell[0]), cell[1] != "100"))


def finished(folder: Path) -> bool:
    """Whether a run has written its result file, which ``sttm-lmms eval`` does last."""
    return bool(result_files(folder))


def run_cell(command: Sequence[str], folder: Path) -> str | None:
    """Run a cell with its output on the screen and in ``log.txt``; None, or how it failed."""
    folder.mkdir(parents=True, exist_ok=True)
    last = "no output"
    with (folder / "log.txt").open("a") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        assert process.stdout is not None
        for line in process.stdout:
            sys.stdout.write(line)
            log.write(line)
            last = line.strip() or last
        status = process.wait()
    if status == 0 and finished(folder):
        return None
    reason = f"status {status}" if status else "no result file"
    return f"{reason}: {last[-LAST_WORDS:]}"


def sweep(args: argparse.Namespace, extra: Sequence[str]) -> int:
    failed: dict[str, str] = {}
    todo = cells(args.model)
    for number, (benchmark, budget) in enumerate(todo, 1):
        folder = args.output / args.model / benchmark / budget
        name = f"[{number}/{len(todo)}] {args.model} {benchmark} {budget}"
        if finished(folder):
            print(f"{name}: finished before, skipped ({folder})", flush=True)
            continue
        command = ["bash", str(HERE / "reproduce.sh"), args.model, benchmark, budget, *args.gpus]
        command += ["--output", str(folder)]
        command += ["--pretrained", args.pretrained] if args.pretrained else []
        command += ["--dry-run"] if args.dry_run else []
        command += ["--", "--use_cache", str(folder / "cache"), *extra]
        print(name, flush=True)
        if args.dry_run:
            if subprocess.run(command, check=False).returncode:
                failed[name] = "the command cannot be made, see above"
        elif error := run_cell(command, folder):
            failed[name] = error
    print(f"{len(todo) - len(failed)} of {len(todo)} cells are fine")
    for name, error in failed.items():
        print(f"failed: {name}: {error}")
    return 1 if failed else 0


def main(argv: Sequence[str]) -> int:
    own, extra = list(argv), []
    if "--" in own:
        cut = own.index("--")
        own, extra = own[:cut], own[cut + 1 :]
    parser = argparse.ArgumentParser(
        prog="reproduce.sh all", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="as in reproduce.sh, for example llava-video-7b")
    parser.add_argument("gpus", nargs="*", help="as in reproduce.sh")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and do nothing")
    parser.add_argument("--pretrained", help="a local checkpoint instead of the hub's")
    parser.add_argument("--output", type=Path, default=Path("outputs/reproduce"), help="root of the results")
    args = parser.parse_args(own)
    try:
        return sweep(args, extra)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
