"""Methods in front of the decoder against recorded outputs of the published code, on bare features.

``exact`` cases do not hang on rounding: survivors, order, values and owners are equal. Of the
others the count is, and most of the survivors. Where the published code fails, ours answers, or
refuses in a sentence.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sttm_lmms.methods import get_method
from sttm_lmms.types import Kept, Tokens

FOLDER = Path(__file__).parents[1] / "golden" / "rivals"
CASES: dict[str, dict[str, Any]] = json.loads((FOLDER / "cases.json").read_text())["cases"]
METHODS = ("evs", "vidcom2", "cluster", "grid", "vcast", "flashvid")


def names(status: str) -> list[str]:
    """Cases that can be run from features and grid alone."""
    cases = {name: case for name, case in CASES.items() if case["method"] in METHODS and "needs" not in case}
    return [name for name, case in cases.items() if case["status"] == status]


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return load_file(FOLDER / "cases.safetensors")


def run(case: dict[str, Any], features: torch.Tensor) -> tuple[Tokens, Kept]:
    settings = dict(case["settings"])
    if "first_prototype" in case:
        settings["first_prototype"] = case["first_prototype"]
    tokens = Tokens.of_grid(features)
    return tokens, get_method(case["method"]).published(**settings).reduce(tokens, 0, None, {})


@pytest.mark.parametrize("name", names("ok"))
def test_recorded(name: str, tensors: dict[str, torch.Tensor]) -> None:
    case = CASES[name]
    tokens, kept = run(case, tensors[f"input/{case['input']}"])
    index = tensors[f"{name}/index"].long()
    assert len(kept) == len(index) == case["n_out"]
    if not case["exact"]:
        ours, theirs = set(kept.index.tolist()), set(index.tolist())
        assert len(ours & theirs) / len(ours | theirs) >= 0.9 * case["overlap_under_rounding"]
        return
    assert torch.equal(kept.index, index)
    expected = tokens.features[index] if case["selection"] else tensors[f"{name}/features"]
    tolerance = (1e-5 if expected.dtype == torch.float32 else 0.02) * max(1.0, expected.abs().max().item())
    # FlashVID may give two tokens one place; their order is that of an unstable sort.
    ours, theirs = (
        [(i, *row) for i, row in zip(index.tolist(), rows.tolist(), strict=True)]
        for rows in (kept.features.float(), expected.float())
    )
    if case.get("duplicate_indices"):
        ours, theirs = sorted(ours), sorted(theirs)
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), atol=tolerance, rtol=0)
    if f"{name}/assign" in tensors:
        assert torch.equal(kept.owner, tensors[f"{name}/assign"].long())
    elif case["selection"]:
        assert torch.equal(kept.owner[index], torch.arange(len(index)))
        assert (kept.owner >= 0).sum() == len(index)


@pytest.mark.parametrize("name", names("reference_error"))
def test_where_the_published_code_fails(name: str, tensors: dict[str, torch.Tensor]) -> None:
    case = CASES[name]
    features = tensors[f"input/{case['input']}"]
    if case["settings"].get("retention_ratio") == 0:
        with pytest.raises(ValueError, match="retention_ratio=0"):
            run(case, features)
        return
    tokens, kept = run(case, features)
    frames, size = len(features), len(tokens) // len(features)
    asked = case["settings"]["retention_ratio"]
    if case["method"] == "flashvid":  # as many a frame as it publishes, one more at most
        assert frames * math.ceil(size * asked) <= len(kept) <= frames * (math.ceil(size * asked) + 1)
    else:
        assert len(kept) == round(len(tokens) * asked)


@pytest.mark.parametrize("budget", [0.5, 0.29, 0.1, 0.004])
@pytest.mark.parametrize("grid", [(7, 5, 8), (1, 10, 10), (40, 3, 3)])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.filterwarnings("ignore::sttm_lmms.methods.base.BudgetWarning")
def test_a_budget_is_exact(name: str, grid: tuple[int, int, int], budget: float) -> None:
    features = torch.randn(*grid, 12, generator=torch.Generator().manual_seed(0))
    features[0, 0, 0] = 0
    tokens, method = Tokens.of_grid(features), get_method(name)(budget=budget)
    kept = method.reduce(tokens, 0, None, {})
    most = max(1, math.floor(budget * math.prod(grid) + 1e-9))
    assert len(kept) == method.count(grid)
    if name == "evs":
        most = max(most, grid[1] * grid[2])
    assert len(kept) <= most if name == "grid" else len(kept) == most
    assert torch.equal(kept.owner[kept.index], torch.arange(len(kept)))


def test_the_nearest_stride_below_a_budget() -> None:
    method = get_method("grid")
    assert method(budget=0.128).count((32, 14, 14)) == 800  # 1 x 3 x 3
    assert method(budget=0.11).count((32, 14, 14)) == 640 + 46  # 5 x 2 x 1
    pooled = method(stride=(2, 2, 2), kind="pooling").reduce(
        Tokens.of_grid(torch.arange(8.0).view(2, 2, 2, 1)), 0, None, {}
    )
    assert pooled.features.tolist() == [[3.5]]


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("evs", {"ratio": 0.5, "budget": 0.5}),
        ("vidcom2", {}),
        ("vidcom2", {"base_scale": 0}),
        ("cluster", {"budget": 0.5, "retention_ratio": 0.5}),
        ("cluster", {"budget": 0.5, "first_prototype": -1}),
        ("grid", {"stride": (0, 1, 1)}),
        ("grid", {"stride": 2}),
        ("vcast", {"retain_ratio": 1.5}),
        ("flashvid", {"budget": 0.3, "token_selection_method": "attn_div"}),
    ],
)
def test_bad_settings_are_refused(name: str, bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="|".join(reversed(bad)) or "exactly one"):
        get_method(name)(**bad)
