"""Pictures of a reduction, drawn from the source map alone, so that they work for every method.

Over each frame lie the cells of the token grid, joined where they share a token. Every frame has a
colour of its own; cells whose token stands in another frame are shaded in that frame's colour and
carry its number. Cells that lost their token are dark and crossed out.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from sttm_lmms.types import MergedTokens

INK, PAPER, QUIET = (24, 24, 27), (255, 255, 255), (113, 113, 122)
LEGEND = (
    "Lines separate tokens. Shaded: merged into a token of the frame with that colour and number.",
    "Faint shade of a frame's own colour: the token also stands for cells of other frames. Dark and crossed: dropped.",
)
_SHADE, _TINT, _DARK = 0.5, 0.22, 0.75
_GAP, _HEAD, _CAPTION, _STRIP, _LINE = 10, 34, 22, 56, 18  # pixels


@dataclass(frozen=True)
class TokenMap:
    """What pictures need of :class:`MergedTokens`, as numpy.

    Attributes:
        source: ``[T, H, W]`` int64, token that stands for each cell, -1 where it was dropped.
        home: ``[N]`` int64, frame in which each token stands.
    """

    source: np.ndarray
    home: np.ndarray

    @classmethod
    def of(cls, merged: MergedTokens) -> TokenMap:
        return cls(merged.source_map.cpu().numpy(), merged.boxes[:, 0].cpu().numpy())

    @property
    def kept_per_frame(self) -> list[int]:
        """Tokens that stand in each frame."""
        return np.bincount(self.home, minlength=len(self.source)).tolist()

    @property
    def share(self) -> float:
        """Kept tokens / all tokens."""
        return len(self.home) / self.source.size

    def homes(self, frame: int) -> np.ndarray:
        """``[H, W]``: the frame in which each cell's token stands, -1 where it was dropped."""
        source = self.source[frame]
        return np.where(source >= 0, self.home[np.maximum(source, 0)], -1)


def frames_of_grid(frames: np.ndarray, rows: int) -> np.ndarray:
    """One frame for each of the grid's ``rows`` in time: Qwen2-VL has one row for two frames.

    Args:
        frames: uint8 ``[F, H, W, 3]`` with F >= rows.
    """
    if len(frames) < rows:
        raise ValueError(f"{len(frames)} frames cannot show a token grid of {rows} rows; pass the frames the model saw")
    step = -(-len(frames) // rows)
    return frames[np.minimum(np.arange(rows) * step, len(frames) - 1)]


def frame_colour(frame: int) -> tuple[int, int, int]:
    """A colour for each frame; those of neighbours are far apart."""
    red, green, blue = colorsys.hsv_to_rgb((0.58 + frame * 0.381966) % 1, 0.8, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_frame(image: np.ndarray, tokens: TokenMap, frame: int, width: int = 320) -> Image.Image:
    """One frame with its cells.

    Args:
        image: uint8 ``[H, W, 3]``.
        frame: index in the token grid.
        width: of the picture in pixels; the height follows.
    """
    height = round(width * image.shape[0] / image.shape[1])
    canvas = Image.fromarray(image).convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    source, homes = tokens.source[frame], tokens.homes(frame)
    xs = np.linspace(0, width, source.shape[1] + 1).round().astype(int)
    ys = np.linspace(0, height, source.shape[0] + 1).round().astype(int)
    shaded = _shade(np.asarray(canvas, dtype=np.float32), homes, frame, _reaching(tokens, frame), xs, ys)
    canvas = Image.fromarray(shaded)
    pen = ImageDraw.Draw(canvas)
    _outline(pen, source, xs, ys)
    _label(pen, source, homes, frame, xs, ys)
    return canvas


def draw_strip(
    kept: Sequence[int], cells: int, width: int, height: int = 56, current: int | None = None
) -> Image.Image:
    """Bars of the tokens kept in each frame, out of ``cells``; ``current`` is set off."""
    strip = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(strip)
    edges = np.linspace(0, width, len(kept) + 1)
    for frame, tokens in enumerate(kept):
        left, right = round(edges[frame]), max(round(edges[frame + 1]) - 2, round(edges[frame]))
        top = height - 1 - round((height - 2) * tokens / cells)
        pen.rectangle((left, 0, right, height - 1), fill=(244, 244, 245))
        if tokens:
            pen.rectangle((left, top, right, height - 1), fill=frame_colour(frame))
        if frame == current:
            pen.rectangle((left, 0, right, height - 1), outline=INK, width=2)
    return strip


def draw_sheet(
    frames: np.ndarray, tokens: TokenMap, title: str, *, columns: int | None = None, width: int = 240
) -> Image.Image:
    """All frames side by side under a title, and the tokens kept in each as a strip below.

    Args:
        frames: uint8 ``[T, H, W, 3]``, one for each row of the grid (see :func:`frames_of_grid`).
        columns: frames in a row of the sheet; by default at most 6.
        width: of one frame in pixels.
    """
    panels = [_panel(frame, tokens, n, width) for n, frame in enumerate(frames)]
    return _compose(panels, columns or min(len(panels), 6), tokens, title, legend=LEGEND)


def draw_film(frames: np.ndarray, tokens: TokenMap, title: str, *, width: int = 480) -> Iterator[Image.Image]:
    """The frames one after another, each with title and strip: the pictures of a GIF or MP4 (even
    sides)."""
    for n, frame in enumerate(frames):
        yield _compose([_panel(frame, tokens, n, width)], 1, tokens, title, current=n)


def _panel(frame: np.ndarray, tokens: TokenMap, number: int, width: int) -> Image.Image:
    """One frame with its cells under a caption: its colour, its number, the tokens kept."""
    picture = draw_frame(frame, tokens, number, width)
    panel = Image.new("RGB", (width, _CAPTION + picture.height), PAPER)
    pen = ImageDraw.Draw(panel)
    kept, cells = tokens.kept_per_frame[number], tokens.source[number].size
    pen.rectangle((0, 4, 11, 15), fill=frame_colour(number), outline=INK)
    pen.text((17, 2), f"frame {number}: {kept} of {cells} kept", fill=INK, font=_font(12))
    panel.paste(picture, (0, _CAPTION))
    return panel


def _compose(
    panels: Sequence[Image.Image],
    columns: int,
    tokens: TokenMap,
    title: str,
    *,
    current: int | None = None,
    legend: Sequence[str] = (),
) -> Image.Image:
    """Title, panels in rows, the strip of tokens kept, legend; both sides are even, as video codecs
    want them."""
    across, down = panels[0].width + _GAP, panels[0].height + _GAP
    width = max(columns * across + _GAP, 720 if legend else 0)
    strip_top = _HEAD + -(-len(panels) // columns) * down
    legend_top = strip_top + _CAPTION + _STRIP + _GAP
    height = legend_top + (_LINE * len(legend) + _GAP if legend else 0)
    sheet = Image.new("RGB", (width + width % 2, height + height % 2), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((_GAP, 8), _fitting(f"{title}: {headline(tokens)}", width - 2 * _GAP, 15), fill=INK, font=_font(15))
    for n, panel in enumerate(panels):
        sheet.paste(panel, (_GAP + n % columns * across, _HEAD + n // columns * down))
    cells = tokens.source[0].size
    pen.text((_GAP, strip_top), f"tokens kept in each frame, of {cells}", fill=INK, font=_font(12))
    strip = draw_strip(tokens.kept_per_frame, cells, width - 2 * _GAP, _STRIP, current)
    sheet.paste(strip, (_GAP, strip_top + _CAPTION))
    for n, line in enumerate(legend):
        pen.text((_GAP, legend_top + _LINE * n), line, fill=QUIET, font=_font(12))
    return sheet


def save_gif(pictures: Sequence[Image.Image], path: Path, seconds: float = 0.5) -> Path:
    """An endless animated GIF, ``seconds`` a picture."""
    # The octree is many times as fast as the default median cut, and as good on these few colours.
    first, *others = (
        picture.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE) for picture in pictures
    )
    first.save(path, save_all=True, append_images=others, duration=round(1000 * seconds), loop=0)
    return path


def headline(tokens: TokenMap) -> str:
    """The numbers of a reduction in words."""
    return f"{len(tokens.home):,} of {tokens.source.size:,} visual tokens kept ({tokens.share:.1%})"


def _shade(
    pixels: np.ndarray, homes: np.ndarray, frame: int, reaching: np.ndarray, xs: np.ndarray, ys: np.ndarray
) -> np.ndarray:
    """Mix the colour of its token's frame into each cell whose token spans frames; darken dropped
    cells."""
    colours = np.zeros((*homes.shape, 3), dtype=np.float32)
    weights = np.zeros((*homes.shape, 1), dtype=np.float32)
    for home in np.unique(homes):
        cells = homes == home
        colours[cells] = frame_colour(int(home)) if home >= 0 else (0, 0, 0)
        weights[cells] = _DARK if home < 0 else _SHADE if home != frame else 0.0
    weights[reaching] = _TINT
    down, across = np.diff(ys), np.diff(xs)
    colours = colours.repeat(down, axis=0).repeat(across, axis=1)
    weights = weights.repeat(down, axis=0).repeat(across, axis=1)
    return (pixels * (1 - weights) + colours * weights).round().astype(np.uint8)


def _reaching(tokens: TokenMap, frame: int) -> np.ndarray:
    """``[H, W]`` bool: cells whose token stands here and also stands for cells of other frames."""
    elsewhere = np.delete(tokens.source, frame, axis=0)
    shared = np.isin(tokens.source[frame], elsewhere) & (tokens.source[frame] >= 0)
    return shared & (tokens.homes(frame) == frame)


def _outline(pen: ImageDraw.ImageDraw, source: np.ndarray, xs: np.ndarray, ys: np.ndarray) -> None:
    """Lines between cells of different tokens, the frame's border, and crosses over dropped
    cells."""
    rows, cols = source.shape
    lines = []
    for y in range(rows):
        for x in range(cols):
            left, top, right, bottom = int(xs[x]), int(ys[y]), int(xs[x + 1]), int(ys[y + 1])
            if source[y, x] < 0:
                pen.line((left, top, right, bottom), fill=QUIET)
                pen.line((left, bottom, right, top), fill=QUIET)
            if x + 1 < cols and source[y, x] != source[y, x + 1]:
                lines.append((right, top, right, bottom))
            if y + 1 < rows and source[y, x] != source[y + 1, x]:
                lines.append((left, bottom, right, bottom))
    border = (0, 0, int(xs[-1]) - 1, int(ys[-1]) - 1)
    for colour, width in ((INK, 3), (PAPER, 1)):
        for line in lines:
            pen.line(line, fill=colour, width=width)
        pen.rectangle(border, outline=colour, width=2 if width == 3 else 1)


def _label(
    pen: ImageDraw.ImageDraw, source: np.ndarray, homes: np.ndarray, frame: int, xs: np.ndarray, ys: np.ndarray
) -> None:
    """The number of the frame that holds the token, in the first cell of each region merged into
    another frame."""
    size = int(min(np.diff(xs).min(), np.diff(ys).min()) * 0.62)
    if size < 7:
        return
    tokens, first = np.unique(source, return_index=True)
    for token, cell in zip(tokens, first, strict=True):
        y, x = divmod(int(cell), source.shape[1])
        if token >= 0 and homes[y, x] != frame:
            middle = ((int(xs[x]) + int(xs[x + 1])) / 2, (int(ys[y]) + int(ys[y + 1])) / 2)
            text = str(homes[y, x])
            pen.text(middle, text, fill=PAPER, font=_font(size), anchor="mm", stroke_width=1, stroke_fill=INK)


def _fitting(text: str, width: int, size: int) -> str:
    """``text`` cut to ``width`` pixels at the front, where the setting's name is."""
    while _font(size).getlength(text) > width and len(text) > 20:
        text = "..." + text[4:]
    return text


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
