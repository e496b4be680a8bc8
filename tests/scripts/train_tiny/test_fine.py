"""The fine model's own stages: it starts from the small one and reads what STTM makes of a video."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from train_tiny import fine
from train_tiny.decoder import FRONT, LAYERS, Positions, run
from train_tiny.shapes import LLAVA_VIDEO_FINE
from train_tiny.stages import make_videos
from train_tiny.student import Student

from sttm_lmms import STTMConfig
from sttm_lmms.demo import shipped
from sttm_lmms.methods.sttm import merge_video_tokens

CONFIG = STTMConfig(spatial_threshold=0.97, temporal_threshold=0.8)


@pytest.fixture(scope="module")
def student():
    return Student(LLAVA_VIDEO_FINE).eval()


@pytest.fixture
def batch(student):
    """Two videos of 14x14 tokens a step, smooth enough to merge."""
    made = make_videos(student, np.random.default_rng(3), "ord", 196, None, videos=2)
    smooth = made.visual.unflatten(1, (made.steps, 14, 14))
    smooth = smooth.roll(1, 2) + smooth.roll(1, 3) + 4 * smooth
    return replace(made, visual=smooth.flatten(1, 3))


def test_the_small_tower_is_tiled(student):
    fine.tile_vision(student, shipped("llava_video"))
    codes = student.vision.inner.embeddings.position_embedding.weight.view(28, 28, -1)
    for rows in (slice(0, 14), slice(14, 28)):
        for columns in (slice(0, 14), slice(14, 28)):
            torch.testing.assert_close(codes[rows, columns], codes[:14, :14])


@torch.no_grad()
def test_a_batch_is_merged_video_by_video(batch):
    merged, blank = fine.merge_batch(batch, CONFIG)
    for row in range(2):
        alone = merge_video_tokens(batch.visual[row].view(batch.steps, 14, 14, -1), CONFIG)
        count = len(alone.features)
        assert count < batch.visual.shape[1]
        torch.testing.assert_close(merged.visual[row, :count], alone.features)
        assert blank[row].tolist() == [False] * count + [True] * (merged.visual.shape[1] - count)


@torch.no_grad()
def test_the_token_over_a_needle_is_the_needles(batch):
    merged, blank = fine.merge_batch(batch, CONFIG)
    for row in range(2):
        wanted = sorted(batch.needle[row][batch.needle[row] >= 0].tolist())
        found = merged.needle[row][merged.needle[row] >= 0].tolist()
        assert set(found) <= set(wanted)
        assert len(found) >= len(wanted) - 1, "two needles in one token are one"
        assert (merged.needle[row][blank[row]] == -1).all()


@torch.no_grad()
def test_filling_up_changes_no_answer(student, batch):
    merged, blank = fine.merge_batch(batch, CONFIG)
    short = int((~blank).sum(1).min())
    row = int((~blank).sum(1).argmin())
    words = student.decoder.model.embed_tokens(batch.ids[row : row + 1])
    size = len(student.prefix)
    outs = []
    for length in (short, short + 9):
        visual = torch.nn.functional.pad(merged.visual[row : row + 1, :short], (0, 0, 0, length - short), value=3.0)
        hidden = torch.arange(size + length)[None] >= size + short
        places = torch.arange(size + length).expand(3, 1, -1)
        outs.append(
            run(
                student.decoder,
                student.context(visual),
                words,
                batch.lengths,
                layers=range(FRONT, LAYERS),
                positions=Positions(places, size + short),
                blank=hidden,
            ).text[LAYERS - 1]
        )
    torch.testing.assert_close(outs[0], outs[1], atol=1e-4, rtol=1e-4)
