"""Pictures drawn from small maps whose every cell is known."""

import numpy as np
import pytest
import torch
from PIL import Image

from sttm_lmms.methods.sttm import MergedTokens
from sttm_lmms.report.pictures import (
    TokenMap,
    draw_film,
    draw_frame,
    draw_sheet,
    draw_strip,
    frame_colour,
    frames_of_grid,
    headline,
    save_gif,
)

GREY = np.full((2, 80, 80, 3), 100, dtype=np.uint8)


@pytest.fixture
def tokens():
    """Two frames of 2x2 cells: one token covers frame 0 and a corner of frame 1; two stay; one cell
    is dropped."""
    merged = MergedTokens(
        features=torch.zeros(3, 1),
        boxes=torch.tensor([[0, 0, 0, 2, 2], [1, 0, 1, 1, 2], [1, 1, 1, 2, 2]]),
        counts=torch.tensor([5, 1, 1]),
        source_map=torch.tensor([[[0, 0], [0, 0]], [[0, 1], [-1, 2]]]),
    )
    return TokenMap.of(merged)


def test_numbers(tokens):
    assert tokens.kept_per_frame == [1, 2]
    assert tokens.share == 3 / 8
    assert headline(tokens) == "3 of 8 visual tokens kept (37.5%)"
    assert tokens.homes(1).tolist() == [[0, 1], [-1, 1]]


def mixed(frame, weight):
    return tuple(round(100 * (1 - weight) + weight * c) for c in frame_colour(frame))


def test_shades_say_where_the_token_stands(tokens):
    picture = draw_frame(GREY[1], tokens, 1, width=80)
    assert picture.size == (80, 80)
    inside = {(0, 0): (35, 35), (0, 1): (60, 20), (1, 0): (20, 50), (1, 1): (60, 60)}
    assert picture.getpixel(inside[0, 0]) == pytest.approx(mixed(0, 0.5), abs=1)
    assert picture.getpixel(inside[0, 1]) == (100, 100, 100)
    assert picture.getpixel(inside[1, 1]) == (100, 100, 100)
    assert max(picture.getpixel(inside[1, 0])) <= 25, "dropped cells are dark"


def test_tokens_that_reach_other_frames_are_tinted_at_home(tokens):
    picture = draw_frame(GREY[0], tokens, 0, width=80)
    assert picture.getpixel((20, 20)) == pytest.approx(mixed(0, 0.22), abs=1)


def test_lines_only_between_tokens(tokens):
    whole, split = (np.asarray(draw_frame(GREY[n], tokens, n, width=80)) for n in (0, 1))
    assert (whole[20, 10:70] == whole[20, 20]).all(), "one token covers frame 0: nothing to separate"
    assert tuple(split[20, 40]) == (255, 255, 255)
    assert tuple(split[60, 40]) == (255, 255, 255)


def test_dropped_cells_are_crossed_out(tokens):
    picture = draw_frame(GREY[1], tokens, 1, width=80)
    assert picture.getpixel((20, 60)) == (113, 113, 122), "the diagonals meet in the middle"


def test_a_token_in_a_later_frame_is_shaded_too():
    later = TokenMap(np.array([[[0]], [[0]]]), np.array([1]))
    picture = draw_frame(GREY[0], later, 0, width=80)
    assert picture.getpixel((8, 8)) == pytest.approx(mixed(1, 0.5), abs=1)


def test_odd_grids_cover_the_picture():
    tokens = TokenMap(np.arange(15).reshape(1, 3, 5), np.zeros(15, dtype=int))
    picture = np.asarray(draw_frame(np.full((1, 64, 100, 3), 9, np.uint8)[0], tokens, 0, width=101))
    assert picture.shape == (65, 101, 3)
    lines = (picture[5] == 255).all(axis=-1).nonzero()[0]
    assert lines.tolist() == [0, 20, 40, 61, 81, 100]


def test_strip_heights():
    strip = np.asarray(draw_strip([0, 5, 10], 10, width=90, height=52))
    heights = [int((strip[:, x] == frame_colour(n)).all(axis=-1).sum()) for n, x in enumerate((15, 45, 75))]
    assert heights == [0, 26, 51]


def test_frames_of_qwen_grids():
    frames = np.arange(7, dtype=np.uint8)[:, None, None, None]
    assert frames_of_grid(frames, 4).ravel().tolist() == [0, 2, 4, 6]
    assert frames_of_grid(frames, 7).ravel().tolist() == list(range(7))
    with pytest.raises(ValueError, match="7 frames cannot show a token grid of 8 rows"):
        frames_of_grid(frames, 8)


def test_sheet_holds_every_frame(tokens):
    sheet = np.asarray(draw_sheet(GREY, tokens, "toy", columns=1, width=80))
    frames = [np.asarray(draw_frame(GREY[n], tokens, n, 80)) for n in (0, 1)]
    assert (sheet[56:136, 10:90] == frames[0]).all()
    assert (sheet[168:248, 10:90] == frames[1]).all()


def test_film_and_gif(tokens, tmp_path):
    pictures = list(draw_film(GREY, tokens, "a long name " * 20, width=79))
    assert len(pictures) == 2
    path = save_gif(pictures, tmp_path / "film.gif", seconds=0.25)
    with Image.open(path) as gif:
        assert gif.n_frames == 2
        assert gif.info["duration"] == 250
        assert gif.info["loop"] == 0


def test_film_fits_video_encoders(tokens):
    for width in (80, 120):
        assert all(side % 2 == 0 for page in draw_film(GREY, tokens, "toy", width=width) for side in page.size)


def test_the_same_map_gives_the_same_picture(tokens):
    first, second = (draw_sheet(GREY, tokens, "toy").tobytes() for _ in range(2))
    assert first == second
