"""The fine model: 14x14 tokens a frame on plain footage, from the 7x7 LLaVA-Video-shaped one.

1. ``project``: the tower is the small one, tiled to four times the area; only the projector learns, from what the tower
   says of a few hundred frames.
2. ``time``: layers 0 and 1 learn how many tokens a step has now; they hardly read the video from before.
3. ``coarse``: layers 2 and up read what STTM makes of a video at random thresholds. What merges is decided by the
   features alone: no needle is spared here.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from sttm_lmms import STTMConfig, load_pretrained
from sttm_lmms.methods.sttm import merge_video_tokens

from .bank import Bank
from .decoder import FRONT, LAYERS, run
from .loop import Place, Schedule, save, train
from .losses import losses
from .stages import layout_of, whole_videos
from .stream import Batch
from .student import Student
from .vision import vision_loss, vision_scores

VIDEOS = 4
FRAMES = 360


@torch.no_grad()
def tile_vision(student: Student, folder: Path) -> None:
    """Take over the tower and projector of the 7x7 model, its position codes side by side twice.

    What a patch looks at is near it, so that four copies of the small frame read a large one nearly as well.
    """
    model: Any
    model, _ = load_pretrained(folder, dtype=torch.float32, device_map="cpu")
    tower = getattr(model.model.vision_tower, "vision_model", model.model.vision_tower)
    weights = dict(tower.state_dict())
    name = "embeddings.position_embedding.weight"
    side = int(len(weights[name]) ** 0.5)
    copies = 2 * student.shape.grid // side
    weights[name] = weights[name].unflatten(0, (side, side)).repeat(copies, copies, 1).flatten(0, 1)
    student.vision.inner.load_state_dict(weights)
    student.vision.projector[0].load_state_dict(model.model.multi_modal_projector.linear_1.state_dict())
    student.vision.projector[2].load_state_dict(model.model.multi_modal_projector.linear_2.state_dict())


def project_stage(student: Student, place: Place, schedule: Schedule) -> None:
    """Teach the projector; the tower is not touched, so that every frame goes through it once."""
    pixels, labels, colours = [], [], []
    path = place.folder / "patches.pt"
    if not path.exists():
        for number in range(FRAMES // 8):
            drawn = student.shape.eye.batch(np.random.default_rng((5, number)))
            with torch.no_grad():
                pixels.append(student.vision.patches(drawn[0]))
            labels.append(drawn[1])
            colours.append(drawn[2])
        save(path, {"patches": torch.cat(pixels), "labels": torch.cat(labels), "colours": torch.cat(colours)})
    seen = torch.load(path, weights_only=True)

    def step(_: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        chosen = rng.integers(0, FRAMES, 6)
        features = student.vision.pool(student.vision.projector(seen["patches"][chosen]))
        labels, colours = seen["labels"][chosen], seen["colours"][chosen]
        return vision_loss(features, labels, colours, student.codes), vision_scores(features, labels, student.codes)

    parameters = student.vision.projector.parameters()
    train("vision", schedule, student.vision, parameters, step, place, seed=9)


def random_config(rng: np.random.Generator) -> STTMConfig:
    """Thresholds from published ones up: either half alone in some of the cases, both else."""
    spatial, gap = 0.999 - float(rng.uniform(0, 0.45)) ** 2, float(rng.uniform(0.02, 0.3))
    which = rng.random()
    if which < 0.25:
        return STTMConfig(spatial_threshold=spatial, temporal_threshold=0.0)
    if which < 0.35:
        return STTMConfig(spatial_threshold=1.01, temporal_threshold=spatial)
    return STTMConfig(spatial_threshold=spatial, temporal_threshold=spatial - gap)


def merge_batch(batch: Batch, config: STTMConfig) -> tuple[Batch, torch.Tensor]:
    """Whole videos merged as STTM does it, and which of the tokens ``[B, K]`` only fill up.

    The token that covers a needle's cell is the needle's, whatever else it covers.
    """
    shape = (batch.steps, batch.grid, batch.grid, -1)
    visual, needle = [], []
    for tokens, objects in zip(batch.visual, batch.needle, strict=True):
        merged = merge_video_tokens(tokens.view(shape), config)
        cells = (objects >= 0).nonzero()[:, 0]
        kept = torch.full((len(merged.features),), -1)
        kept[merged.source_map.flatten()[cells]] = objects[cells]
        visual.append(merged.features)
        needle.append(kept)
    blank = pad_sequence([torch.zeros(len(n), dtype=torch.bool) for n in needle], True, True)
    features = pad_sequence(visual, batch_first=True)
    return replace(batch, visual=features, needle=pad_sequence(needle, True, -1)), blank


def coarse_stage(student: Student, place: Place, schedule: Schedule, bank: Bank) -> None:
    def step(number: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        batch = whole_videos(student, rng, layout_of(number, ordering=2), bank, videos=VIDEOS)
        timed = replace(batch, visual=batch.visual + student.time_code(batch))
        config = random_config(rng)
        merged, blank = (timed, None) if rng.random() < 0.1 else merge_batch(timed, config)
        words = student.decoder.model.embed_tokens(batch.ids)
        context = student.context(merged.visual)
        if blank is not None:
            blank = torch.nn.functional.pad(blank, (len(student.prefix), 0))
        trace = run(student.decoder, context, words, batch.lengths, layers=range(FRONT, LAYERS), blank=blank)
        loss, report = losses(student, trace, merged)
        return loss, report | {"kept": merged.visual.shape[1] / batch.visual.shape[1]}

    train("coarse", schedule, student, student.core(), step, place, seed=8, every=20)
