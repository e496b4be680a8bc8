"""One self-contained HTML page of a reduction: sliders for the frame and for the setting."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from sttm_lmms.report.pictures import TokenMap, frame_colour, headline
from sttm_lmms.report.templating import render_template


@dataclass(frozen=True)
class Setting:
    """One position of the page's second slider.

    Attributes:
        name: such as ``budget 0.5``.
        tokens: what was kept.
        info: plain numbers to show, such as the thresholds that a budget search found.
    """

    name: str
    tokens: TokenMap
    info: dict[str, Any] = field(default_factory=dict)


def render_page(
    frames: np.ndarray, settings: Sequence[Setting], title: str, *, note: str = "", width: int = 640
) -> str:
    """The page as HTML text. It loads nothing: frames are JPEGs in it, the cells are drawn by its
    script.

    Args:
        frames: uint8 ``[T, H, W, 3]``, one for each row of the token grid.
        settings: at least one, all on the same grid.
        title: headline.
        note: a sentence below it, such as where the features come from.
        width: of the embedded frames in pixels.

    Raises:
        ValueError: no setting, or grids that differ.
    """
    grids = {setting.tokens.source.shape for setting in settings}
    if len(grids) != 1 or len(frames) != next(iter(grids))[0]:
        raise ValueError(f"{len(frames)} frames and token grids {sorted(grids)} do not go together")
    data = {
        "grid": list(settings[0].tokens.source.shape),
        "colours": ["rgb({}, {}, {})".format(*frame_colour(frame)) for frame in range(len(frames))],
        "frames": [_data_uri(frame, width) for frame in frames],
        "settings": [
            {
                "name": setting.name,
                "headline": headline(setting.tokens),
                "info": ", ".join(f"{key} {_short(value)}" for key, value in setting.info.items()),
                "source": setting.tokens.source.ravel().tolist(),
                "home": setting.tokens.home.tolist(),
                "kept": setting.tokens.kept_per_frame,
            }
            for setting in settings
        ],
    }
    return render_template("pictures.html.j2", title=title, note=note, data=data)


def _data_uri(frame: np.ndarray, width: int) -> str:
    image = Image.fromarray(frame)
    if image.width > width:
        image = image.resize((width, round(width * image.height / image.width)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
