"""``sttm-lmms``: a table of commands, each imported when it is called, so that a missing extra
stops only its own."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import typer

from sttm_lmms.errors import STTMError
from sttm_lmms.launched import end_with_launcher


@dataclass(frozen=True)
class Command:
    """One line of ``sttm-lmms --help``.

    Attributes:
        target: ``"module:name"`` of a function with typer's annotations, or of a typer app.
        help: one sentence.
        extra: the extra of this package that brings what the command needs beyond the core.
        raw: the function takes the arguments as they are, ``--help`` included.
    """

    target: str
    help: str
    extra: str = ""
    raw: bool = False


COMMANDS: dict[str, Command] = {
    "eval": Command("sttm_lmms.cli.evaluate:evaluate", "Run lmms-eval, with our tasks on its path.", "eval", raw=True),
    "demo": Command("sttm_lmms.demo:demo", "Videos, a small model and three runs each, compared in one table.", "eval"),
    "check": Command(
        "sttm_lmms.cli.check:check", "Check this installation, a checkpoint or a run, and say what to do."
    ),
    "doctor": Command("sttm_lmms.cli.check:check", "The same as check.", "eval"),
    "rehearse": Command("sttm_lmms.cli.check:check", "The same as check.", "eval"),
    "tasks": Command("sttm_lmms.cli.evaluate:tasks", "Print the folder that lmms-eval wants as --include_path."),
    "prepare": Command("sttm_lmms.benchmarks.prepare.cli:app", "Convert and check benchmark data.", "eval"),
    "extract": Command("sttm_lmms.cli.extract:extract", "Store the visual features of a task's videos.", "eval"),
    "calibrate": Command("sttm_lmms.cli.calibrate:calibrate", "Find fixed thresholds that meet a budget on average."),
    "export-decoder": Command(
        "sttm_lmms.cli.export_decoder:export_decoder", "Write a checkpoint's decoder for servers of text models."
    ),
    "serve": Command("sttm_lmms.cli.serve:app", "Serve a model with vLLM, its videos reduced to a budget.", "vllm"),
    "leaderboard": Command("sttm_lmms.report.cli:leaderboard", "Make a table from result files.", "plot"),
    "compare": Command("sttm_lmms.cli.compare:compare", "Run methods at equal budgets; one table, one plot.", "eval"),
    "coverage": Command(
        "sttm_lmms.cli.coverage:coverage", "Measure how well each method's tokens stand for a video.", "plot"
    ),
    "visualize": Command("sttm_lmms.report.visualize:visualize", "Draw which tokens of a video merged.", "plot"),
}

app = typer.Typer(name="sttm-lmms", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def about() -> None:
    """Spatio-temporal token merging for video language models, inside lmms-eval and
    transformers."""


def main(args: Sequence[str] | None = None) -> None:
    """Entry point. A mistake of the user's ends in one line and status 1, not in a traceback."""
    end_with_launcher()
    try:
        app(args)
    except (STTMError, ValueError) as error:
        print(f"sttm-lmms: {error}", file=sys.stderr)
        sys.exit(1)


def run_command(name: str, args: Sequence[str]) -> None:
    """Import a command and call it with ``args``.

    Raises:
        STTMError: it needs a package that is not installed.
    """
    command = COMMANDS[name]
    module, attribute = command.target.split(":")
    try:
        target = getattr(import_module(module), attribute)
        if command.raw:
            target(args)
        else:
            _as_app(target)(list(args), prog_name=f"sttm-lmms {name}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "sttm_lmms":
            raise
        package = f"'sttm-lmms[{command.extra}]'" if command.extra else error.name
        raise STTMError(f"{name} needs {error.name}, which is not installed: pip install {package}") from None


def _as_app(target: Any) -> typer.Typer:
    if isinstance(target, typer.Typer):
        return target
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    single.command()(target)
    return single


def _mount(name: str, command: Command) -> None:
    # Everything after the name, --help included, belongs to the command.
    settings = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

    @app.command(name, help=command.help, context_settings=settings)
    def run(context: typer.Context) -> None:
        run_command(name, context.args)


for _name, _command in COMMANDS.items():
    _mount(_name, _command)
