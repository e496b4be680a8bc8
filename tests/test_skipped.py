"""What a run of tests says about the groups that it left out."""

from __future__ import annotations

import ast
from pathlib import Path

from skipped import WAYS, skipped_groups

pytest_plugins = ("pytester",)
TESTS = Path(__file__).parent


def test_one_line_for_each_reason_most_first():
    reasons = ["Skipped: no CUDA", "Skipped: no Chromium found", "Skipped: no Chromium found", "Skipped: a whim"]
    assert skipped_groups(reasons) == [
        f"2 skipped: no Chromium found -> {WAYS['Chromium']}",
        f"1 skipped: no CUDA -> {WAYS['CUDA']}",
        "1 skipped: a whim",
    ]


def test_a_run_says_it_in_its_last_lines(pytester):
    pytester.syspathinsert(TESTS)
    pytester.makeconftest((TESTS / "conftest.py").read_text())
    pytester.makepyfile(
        """
        import pytest
        pytest.importorskip("a_package_that_nobody_has")
        """,
        test_other="""
        import pytest
        @pytest.mark.skipif(True, reason="no Chromium found")
        @pytest.mark.parametrize("n", range(3))
        def test_page(n): pass
        def test_passes(): pass
        """,
    )
    lines = [line for line in pytester.runpytest().outlines if line]
    assert lines[-4].strip("= ") == "not run on this machine"
    assert lines[-3] == f"3 skipped: no Chromium found -> {WAYS['Chromium']}"
    assert lines[-2].startswith("1 skipped: could not import 'a_package_that_nobody_has'")
    assert lines[-2].endswith("-> make install")
    assert "1 passed, 4 skipped" in lines[-1]


def test_every_reason_of_a_skipif_has_a_way():
    reasons = {
        keyword.value.value
        for file in TESTS.rglob("test_*.py")
        if file != Path(__file__)
        for call in ast.walk(ast.parse(file.read_text()))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "skipif"
        for keyword in call.keywords
        if keyword.arg == "reason" and isinstance(keyword.value, ast.Constant)
    }
    assert reasons
    assert [reason for reason in reasons if not any(part in reason for part in WAYS)] == []
