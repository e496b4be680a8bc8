"""ToMe against a slow version, its exact counts, and the inputs on which the published code
crashes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kept_checks import check_kept, video

from sttm_lmms.methods import tome
from sttm_lmms.methods.base import BudgetWarning
from sttm_lmms.methods.tome import ToMeConfig
from sttm_lmms.types import Kept, Tokens

GRIDS = st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 5))


def slow_tome(features: torch.Tensor, target: int) -> tuple[list[torch.Tensor], list[list[int]], list[int]]:
    """Features, members and representative of each survivor of ``[N, C]``, token by token."""
    now = [(vector.double(), [i], i) for i, vector in enumerate(features)]
    while len(now) > target:
        even, odd = now[::2], [(v, list(m), i) for v, m, i in now[1::2]]
        proposals = []
        for rank, (vector, _, _) in enumerate(even):
            scores = [float(vector @ other / (vector.norm() * other.norm())) for other, _, _ in odd]
            best = max(range(len(odd)), key=scores.__getitem__)
            proposals.append((scores[best], rank, best))
        proposals.sort(key=lambda p: (-p[0], p[1]))
        merges = min(len(now) - target, len(now) // 2)
        sums = [v * len(m) for v, m, _ in odd]
        for _, rank, best in proposals[:merges]:
            vector, members, _ = even[rank]
            sums[best] = sums[best] + vector * len(members)
            odd[best][1].extend(members)
        stay = [even[rank] for _, rank, _ in proposals[merges:]]
        now = stay + [(total / len(m), m, i) for total, (_, m, i) in zip(sums, odd, strict=True)]
    return [v for v, _, _ in now], [m for _, m, _ in now], [i for _, _, i in now]


def compare(
    tokens: Tokens, kept: Kept, features: list[torch.Tensor], members: list[list[int]], index: list[int]
) -> None:
    check_kept(tokens, kept, merges=True, ordered=False)
    assert kept.index.tolist() == index
    for number, own in enumerate(members):
        assert (kept.owner == number).nonzero().squeeze(1).tolist() == sorted(own)
    torch.testing.assert_close(kept.features, torch.stack(features).float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 0.7, 0.93, 1.0])
@pytest.mark.parametrize("grid", [(5, 3, 3), (4, 2, 5), (1, 4, 4)])
def test_video_is_the_slow_version(grid: tuple[int, int, int], ratio: float) -> None:
    tokens = video(grid)
    kept = ToMeConfig(ratio=ratio).reduce(tokens, 2, None, {})
    assert len(kept) == max(1, math.ceil(len(tokens) * (1 - ratio)))
    compare(tokens, kept, *slow_tome(tokens.features, len(kept)))


@pytest.mark.parametrize("scope", [{"ratio": 0.5}, {"ratio": 0.8}, {"budget": 0.31}])
def test_frames_are_merged_each_for_itself(scope: dict) -> None:
    tokens = video((5, 3, 4))
    kept = ToMeConfig(scope="frame", **scope).reduce(tokens, 2, None, {})
    features, members, index = [], [], []
    kept_frame = kept.index // 12
    assert (kept_frame.diff() >= 0).all()  # frame after frame
    for t in range(5):
        f, m, i = slow_tome(tokens.features[t * 12 : t * 12 + 12], int((kept_frame == t).sum()))
        features += f
        members += [[t * 12 + cell for cell in own] for own in m]
        index += [t * 12 + cell for cell in i]
    compare(tokens, kept, features, members, index)
    assert len(kept) == (18 if "budget" in scope else 5 * math.ceil(12 * (1 - scope["ratio"])))


@pytest.mark.parametrize("scope", ["video", "frame"])
@settings(max_examples=60, deadline=None)
@given(grid=GRIDS, budget=st.floats(0.01, 1.0))
def test_a_budget_is_met_exactly(scope: str, grid: tuple[int, int, int], budget: float) -> None:
    tokens = video(grid)
    most = max(count for count in range(len(tokens) + 1) if count / len(tokens) <= budget)
    method = ToMeConfig(scope=scope, budget=budget)
    if scope == "frame" and max(1, most) < grid[0]:
        with pytest.warns(BudgetWarning, match="less than one token a frame"):
            assert len(method.reduce(tokens, 2, None, {})) == grid[0]
        return
    kept = method.reduce(tokens, 2, None, {})
    check_kept(tokens, kept, merges=True, ordered=False)
    assert len(kept) == max(1, most)


def test_blocks_of_similarities_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = video((6, 5, 5))
    whole = ToMeConfig(ratio=0.7).reduce(tokens, 2, None, {})
    monkeypatch.setattr(tome, "BLOCK", 200)
    blocked = ToMeConfig(ratio=0.7).reduce(tokens, 2, None, {})
    assert torch.equal(whole.owner, blocked.owner)
    assert torch.equal(whole.features, blocked.features)


def test_tokens_that_already_stand_for_several_weigh_as_many() -> None:
    features = torch.tensor([[1.0, 0.1], [1.0, 0.0]])
    tokens = Tokens(features, torch.tensor([[0, 0, 0], [1, 0, 0]]), torch.tensor([3, 1]), (2, 1, 2))
    kept = ToMeConfig(budget=0.5).reduce(tokens, 2, None, {})
    torch.testing.assert_close(kept.features, torch.tensor([[1.0, 0.075]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_untouched_tokens_keep_every_bit_and_zeros_give_no_nan(dtype: torch.dtype) -> None:
    tokens = Tokens.of_grid(torch.zeros(3, 2, 2, 4, dtype=dtype))
    check_kept(tokens, ToMeConfig(ratio=0.5).reduce(tokens, 2, None, {}), merges=True, ordered=False)
    tokens = Tokens.of_grid(torch.randn(3, 3, 3, 4).to(dtype))
    kept = ToMeConfig(ratio=0.2).reduce(tokens, 2, None, {})
    alone = kept.owner.bincount() == 1
    assert alone.any()
    assert torch.equal(kept.features[alone], tokens.features[kept.index[alone]])


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        ({}, "either ratio"),
        ({"ratio": 0.5, "budget": 0.5}, "either ratio"),
        ({"ratio": 1.5}, "ratio=1.5"),
        ({"budget": 0.0}, "budget=0.0"),
        ({"ratio": 0.5, "scope": "snippet"}, "'video', 'frame'"),
        ({"ratio": 0.5, "start_layer": -1}, "start_layer=-1"),
    ],
)
def test_bad_settings_are_refused(bad: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        ToMeConfig(**bad)


def test_unknown_published_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"sa_prune_ration.*Did you mean 'sa_prune_ratio'"):
        ToMeConfig.published(sa_prune_ration=0.5)


def test_frames_need_the_whole_grid() -> None:
    tokens = video((2, 2, 2))
    fewer = Tokens(tokens.features[:5], tokens.cells[:5], tokens.counts[:5], tokens.grid)
    with pytest.raises(ValueError, match="5 tokens are left"):
        ToMeConfig(ratio=0.5, scope="frame").reduce(fewer, 2, None, {})
