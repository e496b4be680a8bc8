"""``sttm-lmms serve``: vLLM's OpenAI-compatible server with our plugin in it.

All that happens here is a translation: the command becomes vLLM's own, with the plugin's switch in
the environment, and takes this process's place.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from sttm_lmms.errors import STTMError
from sttm_lmms.serving.vllm_plugin import ARCHITECTURES, SWITCH

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
_SERVER = (sys.executable, "-m", "vllm.entrypoints.openai.api_server")
_OURS = ("--video-pruning-rate", "--video-pruning-method")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Hub id or local folder; vLLM's own names.")],
    budget: Annotated[float, typer.Option(help="Kept / all visual tokens of every video, in (0, 1].")],
    method: Annotated[str, typer.Option(help="sttm, or another method that knows its count beforehand.")] = "sttm",
    setting: Annotated[list[str] | None, typer.Option(help="NAME=VALUE of the method, such as root_level=2.")] = None,
    revision: Annotated[str | None, typer.Option(help="Of a hub id.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print vLLM's command and stop.")] = False,
) -> None:
    """Serve MODEL with vLLM, videos reduced to exactly BUDGET of their tokens; all other arguments
    are vLLM's."""
    check_architecture(model, revision)
    settings = {"method": method, "budget": budget, **_parsed(setting or [])}
    extra = list(context.args) + (["--revision", revision] if revision else [])
    command = server_command(model, settings, extra)
    if dry_run:
        print(f"{SWITCH}=1 {shlex.join(command)}")
        return
    sys.stdout.flush()
    os.execve(command[0], command, {**os.environ, SWITCH: "1"})


def server_command(model: str, settings: Mapping[str, Any], extra: Sequence[str] = ()) -> list[str]:
    """vLLM's command.

    Args:
        settings: what becomes ``hf_config.sttm``: ``method``, ``budget`` and settings of the
            method.
        extra: further arguments of vLLM; a JSON object in ``--hf-overrides`` is kept beside ours.

    Raises:
        ValueError: the settings are not valid, the method cannot run in vLLM, or ``extra`` names
            what is set here.
    """
    from sttm_lmms.serving.vllm_plugin.reduction import method_of

    method_of(settings)
    overrides, rest = _take_option("--hf-overrides", extra)
    for name in _OURS:
        if _take_option(name, rest)[0] is not None:
            raise ValueError(f"{name} is what --budget sets; leave it out, or start vLLM itself for its own pruning")
    try:
        known = json.loads(overrides or "{}")
    except ValueError as error:
        raise ValueError(f"--hf-overrides {overrides}: not a JSON object ({error})") from None
    # The rate is only vLLM's switch: it has to be above 0. The budget travels as itself.
    return [
        *(*_SERVER, "--model", model, "--video-pruning-rate", "0.5"),
        *("--hf-overrides", json.dumps({**known, "sttm": dict(settings)})),
        *rest,
    ]


def check_architecture(model: str, revision: str | None = None) -> None:
    """Raise ``STTMError`` unless the plugin knows the model's architecture: vLLM would serve it
    with all tokens."""
    from transformers import PretrainedConfig

    try:
        found, _ = PretrainedConfig.get_config_dict(model, revision=revision)
    except OSError as error:
        raise STTMError(f"{model}: no config.json to be had ({error})") from None
    names = found.get("architectures") or []
    if not any(name in ARCHITECTURES for name in names):
        raise STTMError(
            f"{model} is a {', '.join(names) or 'model without architectures'}; videos are reduced inside of vLLM for "
            f"{', '.join(ARCHITECTURES)}"
        )


def _parsed(settings: Sequence[str]) -> dict[str, Any]:
    found = {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--setting {text}: give NAME=VALUE")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def _take_option(name: str, arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The value of an option (``--name value`` or ``--name=value``), and the other arguments."""
    value, rest = None, []
    given = iter(arguments)
    for argument in given:
        head, equals, tail = argument.partition("=")
        if head.replace("_", "-") != name:
            rest.append(argument)
        else:
            value = tail if equals else next(given, "")
    return value, rest
