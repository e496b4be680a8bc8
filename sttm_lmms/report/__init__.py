"""Result files -> leaderboards and plots; source maps -> pictures. It depends on the core, the core not on it."""

from sttm_lmms.report.render import render
from sttm_lmms.report.runs import Run, load_runs
from sttm_lmms.report.table import build_table

__all__ = ["Run", "build_table", "load_runs", "render"]
