"""What our command line asks of lmms-eval; the core itself never imports it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from lmms_eval.cli.dispatch import main
from lmms_eval.models import MODEL_REGISTRY_V2
from lmms_eval.utils import simple_parse_args_string
from loguru import logger

from sttm_lmms.model_wrappers.screen import capture_errors


def run_lmms_eval(args: Sequence[str]) -> str | None:
    """``lmms-eval ARGS`` in this process. Returns a sentence about the error that ended the run, if
    one did.

    lmms-eval leaves the process group to the end of the interpreter, where gloo's threads abort a
    process now and then: the launcher then takes a finished run for a failed one. After an error
    the others may not come to meet.
    """
    sys.argv = ["lmms-eval", *args]
    # Errors are heard through its log, which `check` in this process may have silenced.
    logger.enable("lmms_eval")
    with capture_errors() as sentences:
        try:
            main()
        except SystemExit:
            if not sentences:
                raise
    if sentences:
        return sentences[-1]
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
    return None


def split_arguments(text: str) -> dict[str, Any]:
    """``a=1,b=x`` as lmms-eval reads ``--model_args``."""
    return simple_parse_args_string(text)


def finds_model(name: str) -> bool:
    """True if lmms-eval knows the model ``name``, so that our entry point is alive."""
    try:
        MODEL_REGISTRY_V2.get_model_class(name)
    except ValueError:
        return False
    return True
