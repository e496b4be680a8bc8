"""Writes Mini-VNBench: mp4 files and annotations in the STTM format of VNBench."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sttm_lmms.benchmarks.formats import duration_class
from sttm_lmms.benchmarks.mini.footage import Footage
from sttm_lmms.benchmarks.mini.objects import paint
from sttm_lmms.benchmarks.mini.questions import KINDS, Event, Question, sample_video
from sttm_lmms.benchmarks.mini.scenery import SCENERIES, TEXTURED, Scenery
from sttm_lmms.video import write_video

SPLITS: dict[str, int] = {"train": 0, "test": 1}
STYLES: tuple[str, ...] = ("edit", "insert")
ANNOTATIONS = "VNBench-main-4try_v2.json"
FRAME_SIZES = TEXTURED.sizes
TRIES = 4


@dataclass(frozen=True)
class MiniVideo:
    """One video before it is drawn.

    Attributes:
        name: file name without suffix; ends in the task type, as in VNBench.
        style: ``edit`` (needles drawn over the footage) or ``insert`` (on still pictures put into
            the footage).
        seconds: length of the finished video.
        size: (width, height) in pixels.
        fps: frames per second.
        seed: of the footage.
        scenery: the set it belongs to.
    """

    name: str
    style: str
    seconds: float
    size: tuple[int, int]
    fps: float
    events: tuple[Event, ...]
    question: Question
    seed: tuple[int, ...]
    scenery: Scenery = TEXTURED

    def frames(self) -> Iterator[np.ndarray]:
        """uint8 ``[H, W, 3]`` frames, one second at a time."""
        rng = np.random.default_rng(self.seed)
        footage = self.scenery.footage(rng, self.seconds)
        times = np.arange(round(self.seconds * self.fps)) / self.fps
        events = {event.second: event for event in self.events}
        shown = 0.0  # footage seconds used up: an inserted picture stops the footage for a second
        for second in range(int(np.ceil(self.seconds))):
            # A sample taken at a whole second must fall on the first frame of that second.
            inside = times[(times >= second - 1e-9) & (times < second + 1 - 1e-9)]
            event = events.get(second)
            picture = self.style == "insert" and event is not None
            yield from self._second(rng, footage, inside - second + shown, event, picture)
            shown += 0.0 if picture else 1.0

    def _second(
        self, rng: np.random.Generator, footage: Footage, times: np.ndarray, event: Event | None, picture: bool
    ) -> Iterator[np.ndarray]:
        width, height = self.size
        if picture:
            frames = self.scenery.scene(rng, still=True).render(torch.zeros(len(times)), height, width)
        else:
            frames = footage.render(times, height, width)
        if event is not None:
            frames = paint(frames, event.index, event.x, event.y, event.size, self.scenery.grid)
        grain = footage.noise * torch.from_numpy(rng.standard_normal(tuple(frames.shape)).astype(np.float32))
        pixels = ((frames + grain).clamp(0, 1) * 255).round().to(torch.uint8)
        yield from pixels.permute(0, 2, 3, 1).contiguous().numpy()

    def records(self) -> list[dict[str, object]]:
        """Annotation records: the question in ``TRIES`` orders of its options, the right one in
        every place."""
        rng = np.random.default_rng((*self.seed, 1))
        inserted = len(self.events) if self.style == "insert" else 0
        asked = sorted(event.second for event in self.events if event.index in self.question.needles)
        records: list[dict[str, object]] = []
        base = rng.permutation(len(self.question.contents))
        for number in range(TRIES):
            question = self.question.shuffled(np.roll(base, number).tolist())
            records.append(
                {
                    "question": question.text,
                    "options": question.options,
                    "needle_time": asked,
                    "answer": "ABCD"[question.answer],
                    "length": self.seconds - inserted,
                    "task_type": self.name.split("_", 1)[1],
                    "try": number,
                    "videoID": self.name,
                    "question_id": f"{self.name}_try{number}",
                    "video_second": round(self.seconds * self.fps) / self.fps,
                    "duration": duration_class(self.seconds),
                }
            )
        return records


def plan_video(
    number: int,
    *,
    seed: int,
    split: str,
    scenery: str = "textured",
    lengths: Sequence[float] | None = None,
    sizes: Sequence[tuple[int, int]] | None = None,
    fps: Sequence[float] | None = None,
) -> MiniVideo:
    """Video ``number`` of a split: kinds and styles take turns, all else is drawn from (split,
    seed, number)."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    if scenery not in SCENERIES:
        raise ValueError(f"scenery {scenery!r} is not one of {', '.join(SCENERIES)}")
    drawn_from = SCENERIES[scenery]
    lengths, sizes, fps = lengths or drawn_from.lengths, sizes or drawn_from.sizes, fps or drawn_from.rates
    key = (SPLITS[split], seed, number)
    rng = np.random.default_rng(key)
    kind, style = KINDS[number % len(KINDS)], STYLES[number // len(KINDS) % len(STYLES)]
    seconds = float(rng.choice(np.asarray(lengths, dtype=float)))
    width, height = sizes[int(rng.integers(len(sizes)))]
    rate = float(fps[int(rng.integers(len(fps)))])
    events, question = sample_video(rng, kind, seconds, drawn_from.grid)
    name = f"{split}{seed}-{number:04d}_{kind}_{style}1"
    return MiniVideo(name, style, seconds, (width, height), rate, events, question, (*key, 2), drawn_from)


def write_benchmark(
    out_dir: str | Path,
    *,
    videos: int = 24,
    seed: int = 0,
    split: str = "test",
    scenery: str = "textured",
    lengths: Sequence[float] | None = None,
    sizes: Sequence[tuple[int, int]] | None = None,
    fps: Sequence[float] | None = None,
) -> Path:
    """Write ``vnbench/annotations`` and ``vnbench/videos`` under a data root (``$STTM_DATA_ROOT``).

    Args:
        out_dir: the data root.
        videos: how many; retrieval, ordering and counting take turns, each with edited and inserted
            needles.
        seed: other seeds give other videos; so does the other split.
        split: ``"train"`` or ``"test"``.
        scenery: ``"textured"`` (rough texture, slow camera: much to merge in time) or ``"plain"``
            (large plain areas, needles half as large, fast camera and cuts: much to merge in
            space).
        lengths: lengths in seconds to draw from, at least 5; by default those of the scenery.
        sizes: (width, height) in pixels to draw from, even; by default those of the scenery.
        fps: frame rates to draw from; by default those of the scenery.

    Returns:
        The annotation file.

    Raises:
        ValueError: an unknown split or scenery, or a length too short for the needles.
    """
    root = Path(out_dir) / "vnbench"
    records: list[dict[str, object]] = []
    for number in range(videos):
        video = plan_video(number, seed=seed, split=split, scenery=scenery, lengths=lengths, sizes=sizes, fps=fps)
        write_video(root / "videos" / f"{video.name}.mp4", video.frames(), video.fps, gop=24)
        records += video.records()
    path = root / "annotations" / ANNOTATIONS
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    return path
