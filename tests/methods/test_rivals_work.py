"""What the methods in front of the decoder ask of a device, and the fast forms of their loops
against slow ones."""

from __future__ import annotations

import pytest
import torch
from dispatched import Dispatched

from sttm_lmms.methods import cluster, get_method
from sttm_lmms.methods.cluster import Assigned, spherical_kmeans, spread_prototypes
from sttm_lmms.types import Tokens


def host_reads(name: str, frames: int, **settings: object) -> int:
    generator = torch.Generator().manual_seed(0)
    still = torch.randn(1, 8, 8, 24, generator=generator)
    video = Tokens.of_grid(still + 0.4 * torch.randn(frames, 8, 8, 24, generator=generator))
    method = get_method(name)(**settings)
    with Dispatched() as work:
        method.reduce(video, 0, None, {})
    return work.host_reads.total()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("flashvid", {"budget": 0.2, "do_segment": False}),
        ("flashvid", {"retention_ratio": 0.2, "do_segment": False}),
        ("evs", {"budget": 0.2}),
        ("vidcom2", {"budget": 0.2}),
        ("vcast", {"budget": 0.2}),
    ],
)
def test_the_host_does_not_wait_for_each_frame(name: str, settings: dict) -> None:
    assert host_reads(name, 6, **settings) == host_reads(name, 24, **settings) <= 8


def test_the_host_waits_for_rounds_not_for_prototypes() -> None:
    few, many = (host_reads("cluster", frames, budget=0.5, max_iters=3) for frames in (4, 16))
    assert many - few <= 20  # of 384 prototypes more


def rows(number: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(9, 16, generator=generator)
    made = centres[torch.arange(number) % 9] + 0.4 * torch.randn(number, 16, generator=generator)
    return torch.nn.functional.normalize(made, dim=1)


@pytest.mark.parametrize("count", [1, 2, 40, 200])
@pytest.mark.parametrize("pool", [1, 7, 512])
def test_prototypes_from_a_pool_are_those_of_one_after_the_other(
    pool: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "POOL", pool)
    unit = rows(200)
    unit[50:60] = unit[40:50]  # equal rows
    first, chosen = torch.tensor(3), [3]
    near = unit @ unit[3]
    for _ in range(count - 1):
        chosen.append(int(near.argmin()))
        near = torch.maximum(near, unit @ unit[chosen[-1]])
    prototypes, (similarity, group) = spread_prototypes(unit, first, count)
    assert torch.equal(prototypes, unit[chosen])
    torch.testing.assert_close(similarity, near)
    torch.testing.assert_close((unit * prototypes[group]).sum(1), near)


@pytest.mark.parametrize("block", [64, 1 << 24])
@pytest.mark.parametrize("rounds", [0, 1, 10])
def test_what_is_known_of_unmoved_prototypes_changes_nothing(
    rounds: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against k-means that compares everything in every round."""
    monkeypatch.setattr(cluster, "BLOCK", block)
    unit = rows(300, seed=1)
    prototypes = unit[torch.arange(0, 300, 10)]
    assigned = Assigned(*(unit @ prototypes.T).max(1))
    expected = prototypes
    for _ in range(rounds):
        group = (unit @ expected.T).argmax(1)
        means = torch.stack([unit[group == number].sum(0) for number in range(len(expected))])
        expected = torch.nn.functional.normalize(means, dim=1)
    assert torch.equal(spherical_kmeans(unit, prototypes, assigned, rounds), (unit @ expected.T).argmax(1))
