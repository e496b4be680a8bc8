"""``sttm-lmms export-decoder``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sttm_lmms.families.checkpoint import resolve_checkpoint


def export_decoder(
    pretrained: Annotated[str, typer.Argument(help="LLaVA-Video or LLaVA-OneVision: hub id or local folder.")],
    out: Annotated[Path, typer.Option(help="Folder for the plain Qwen2 checkpoint.")],
) -> None:
    """Write the decoder of a checkpoint as a plain Qwen2 checkpoint; a finished export is left as
    it is."""
    from sttm_lmms.families.decoder_export import export_decoder as export

    print(export(resolve_checkpoint(pretrained), out))
