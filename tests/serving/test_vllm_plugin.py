"""The vLLM plugin's own arithmetic, without vLLM: counts, digits, positions under every
chunking."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch

from sttm_lmms.families.qwen2_vl import mrope_positions
from sttm_lmms.methods import get_method
from sttm_lmms.runtime.videos import reduce_grid
from sttm_lmms.serving import vllm_plugin
from sttm_lmms.serving.vllm_plugin.channels import LARGEST, split_integers, with_integers
from sttm_lmms.serving.vllm_plugin.positions import (
    CARRIED,
    Placeholder,
    Run,
    next_delta,
    place_rows,
    prompt_positions,
    row_values,
)
from sttm_lmms.serving.vllm_plugin.reduction import method_of, reduce_video, reserved, salt

TEXT, START, END, IMAGE, VIDEO = 1, 2, 3, 4, 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_integers_travel_exactly(dtype):
    values = torch.stack((torch.arange(LARGEST + 1), torch.arange(LARGEST, -1, -1)), dim=1)
    rows = torch.randn(len(values), 3).to(dtype)
    carried = with_integers(rows, values)
    assert carried.dtype == dtype
    back, found = split_integers(carried, 2)
    assert torch.equal(back, rows)
    assert torch.equal(found, values)


@pytest.mark.parametrize("value", [-1, LARGEST + 1])
def test_integers_that_cannot_travel_are_refused(value):
    with pytest.raises(ValueError, match="only integers from 0"):
        with_integers(torch.zeros(1, 3), torch.tensor([[value]]))


@dataclass
class Prompt:
    """A full prompt with random images and videos, and the same prompt with some video tokens left
    out.

    Attributes:
        full: ``[3, L]`` positions of the full prompt.
        stays: ``[L]`` bool, what is left of it.
        ids: of the short prompt.
        placeholders: of the short prompt.
        carried: ``(start column, [n, CARRIED])`` of each image and video.
    """

    full: torch.Tensor
    stays: torch.Tensor
    ids: torch.Tensor
    placeholders: list[Placeholder]
    carried: list[tuple[int, torch.Tensor]]

    @classmethod
    def of(cls, family: str, seed: int) -> Prompt:
        draw = random.Random(seed)
        ids, stays, blocks, intervals, runs, full_ids = [], [], [], [], [], []

        def text(count):
            full_ids.extend([TEXT] * count)
            stays.extend([True] * count)

        text(draw.randint(0, 3))
        for number in range(draw.randint(1, 4)):
            text(draw.randint(number > 0, 4))
            full_ids.append(START)
            stays.append(True)
            h, w = draw.randint(1, 4), draw.randint(1, 4)
            if draw.random() < 0.3:
                run, pad, kept = Run.of_grid((1, h, w)), IMAGE, torch.arange(h * w)
            else:
                t, pad = draw.randint(1, 6), VIDEO
                kept = torch.tensor(sorted(draw.sample(range(t * h * w), draw.randint(1, t * h * w))))
                if family == "qwen3_vl":
                    run = timestamped(draw, t, h, w)
                else:
                    run = Run.of_grid((t, h, w), draw.choice([0.4, 1.0, 2.5]) if family == "qwen2_5_vl" else 1.0)
            begin = len(full_ids)
            inside = [pad] * run.length
            left = [True] * run.length
            if run.lead >= 0:
                inside = [TEXT] * run.length
                for start, (_, height, width) in run.blocks:
                    inside[start - 1], inside[start + height * width] = START, END
                    inside[start : start + height * width] = [VIDEO] * (height * width)
            visual = run.visual().tolist()
            gone = set(visual) - {visual[place] for place in kept.tolist()}
            left = [place not in gone for place in range(run.length)]
            blocks += [(begin + start, grid) for start, grid in run.blocks]
            intervals += [run.interval] * len(run.blocks)
            runs.append((begin, run, kept))
            full_ids.extend(inside)
            stays.extend(left)
            full_ids.append(END)
            stays.append(True)
        text(draw.randint(1, 5))
        full = mrope_positions(len(full_ids), blocks, intervals)[:, 0]
        keep = torch.tensor(stays)
        places = keep.cumsum(0) - 1  # column of each token of the full prompt that stays
        ids = torch.tensor(full_ids)[keep]
        placeholders, carried = [], []
        for begin, run, kept in runs:
            column = int(keep[:begin].sum())
            values = row_values(run, kept)
            assert values.shape == (
                int(places[begin + run.length - 1] - column + 1)
                if keep[begin + run.length - 1]
                else int(keep[begin : begin + run.length].sum()),
                CARRIED,
            )
            placeholders.append(Placeholder(column, len(values), int(run.positions().max()) + 1))
            carried.append((column, values))
            if run.lead >= 0:  # vLLM announces all kept tokens in the first frame
                marks = [START, *[VIDEO] * len(kept), END]
                others = [TEXT] * (len(values) - len(kept) - 2 * len(run.blocks))
                lump = others[: run.lead] + marks + others[run.lead :]
                lump += [START, END] * (len(run.blocks) - 1)
                ids[column : column + len(values)] = torch.tensor(lump)
        return cls(full, keep, ids, placeholders, carried)

    def rows(self, begin: int, end: int) -> list[torch.Tensor]:
        """What the encoder's cache holds for the columns ``begin .. end`` of the short prompt."""
        return [
            values[max(begin - start, 0) : end - start]
            for start, values in self.carried
            if start < end and begin < start + len(values)
        ]

    def place(self, positions: torch.Tensor, begin: int, end: int) -> torch.Tensor:
        return place_rows(self.ids, self.rows(begin, end), positions, begin, START, (IMAGE, VIDEO))


def timestamped(draw: random.Random, t: int, h: int, w: int) -> Run:
    blocks, length = [], 0
    lead = None
    for _ in range(t):
        length += draw.randint(1, 7)
        lead = length if lead is None else lead
        blocks.append((length + 1, (1, h, w)))
        length += h * w + 2
    return Run(length, tuple(blocks), lead=lead)


PROMPTS = [(family, seed) for family in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl") for seed in range(25)]


@pytest.mark.parametrize(("family", "seed"), PROMPTS)
def test_positions_are_those_of_the_full_prompt(family, seed):
    prompt = Prompt.of(family, seed)
    expected = prompt.full[:, prompt.stays]
    length = expected.shape[1]
    first, delta = prompt_positions(length, prompt.placeholders)
    text = torch.ones(length, dtype=torch.bool)
    for item in prompt.placeholders:
        text[item.start : item.start + item.length] = False
    assert torch.equal(first[:, text], expected[:, text]), "a prefix-cache hit over every video leaves these alone"
    assert delta == int(expected[:, -1].max()) + 1 - length
    for chunk in {*range(1, min(length, 9)), length // 2 or 1, length}:
        positions = first
        for begin in range(0, length, chunk):
            end = min(begin + chunk, length)
            positions = prompt.place(positions, begin, end)
            assert torch.equal(positions[:, begin:end], expected[:, begin:end]), f"chunks of {chunk}, from {begin}"
            assert next_delta(positions) == delta
        assert torch.equal(prompt.place(positions, 0, length), expected), "once more, after preemption"


def test_methods_that_can_run_in_vllm():
    method = method_of({"method": "random", "budget": 0.3})
    assert method == get_method("random")(budget=0.3, start_layer=0)
    assert reserved(method, (4, 7, 7)) == 58
    assert salt(method) != salt(method_of({"method": "random", "budget": 0.2}))
    with pytest.raises(ValueError, match="depends on the video"):
        method_of({"method": "sttm", "floor": "keep", "budget": 0.3})
    with pytest.raises(ValueError, match="first layer only"):
        method_of({"method": "random", "budget": 0.3, "start_layer": 2})


@pytest.mark.parametrize("method", ["random", "sttm"])
@pytest.mark.parametrize("budget", [0.01, 0.1, 0.29, 0.5, 1.0])
def test_exactly_as_many_rows_as_were_reserved(method, budget):
    chosen = method_of({"method": method, "budget": budget})
    generator = torch.Generator().manual_seed(0)
    for grid in ((1, 1, 1), (1, 7, 7), (3, 5, 6), (8, 4, 4)):
        cells = grid[0] * grid[1] * grid[2]
        features = torch.randn(cells, 24, generator=generator)
        features[::3] = features[0].clone()
        features[1::11] = torch.nan if method == "sttm" else 0.0
        rows, kept, _ = reduce_video(chosen, features, grid, channels=16)
        assert len(rows) == len(kept) == max(1, int(budget * cells + 1e-9))
        assert rows.shape[1] == 24
        assert bool((kept.diff() > 0).all())


def test_deepstack_channels_are_averaged_over_the_group():
    method = method_of({"method": "sttm", "budget": 0.4})
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(4, 6, generator=generator).repeat(6, 1) + 0.1 * torch.randn(24, 6, generator=generator)
    extra = torch.randn(24, 3, generator=generator)
    rows, kept, _ = reduce_video(method, torch.cat((tokens, extra), dim=1), (6, 2, 2), channels=6)
    merged = reduce_grid(method, tokens.view(6, 2, 2, 6))
    owner = merged.source_map.flatten()
    assert len(kept) == len(merged) == 9
    assert torch.equal(rows[:, :6], merged.features)
    for number in range(len(merged)):
        assert torch.allclose(rows[number, 6:], extra[owner == number].mean(0), atol=1e-6)


def test_the_plugin_does_nothing_unless_asked(monkeypatch):
    monkeypatch.delenv(vllm_plugin.SWITCH, raising=False)
    assert vllm_plugin.register() is None


@pytest.mark.parametrize(("version", "known"), [("0.32.0", True), ("0.33.1", True), ("0.31.0", False), ("1.0", False)])
def test_versions(version, known):
    assert (vllm_plugin.version_problem(version) is None) == known
