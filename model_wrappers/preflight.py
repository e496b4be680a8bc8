"""What can be known to fail before lmms-eval starts: arguments, device, packages, the checkpoint's
family."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from lmms_eval.utils import simple_parse_args_string

from sttm_lmms.model_wrappers import WRAPPERS
from sttm_lmms.model_wrappers.load import check_family, check_packages, place


def check_arguments(model: str, model_args: str, options: Mapping[str, Any]) -> None:
    """Check the arguments of one of our wrappers, as the wrapper itself will; other models pass. No
    weights are downloaded.

    Args:
        model, model_args: as on lmms-eval's command line.
        options: lmms-eval's own options that reach the model, such as ``device``.

    Raises:
        ValueError: an argument is unknown or has a value it cannot have.
        STTMError: the machine lacks what an argument asks for.
        CheckpointError: the checkpoint cannot be had, or is of another family.
    """
    if model not in WRAPPERS:
        return
    module, name = WRAPPERS[model].split(".")
    wrapper = getattr(import_module(f"sttm_lmms.model_wrappers.{module}"), name)
    run = wrapper.read({**options, **simple_parse_args_string(model_args)})
    arguments, family = run.arguments, run.family
    place(arguments)
    check_packages(arguments)
    check_family(arguments, family)
