"""Converters from the official releases to the STTM annotation format, and the check of a data
folder."""

from sttm_lmms.benchmarks.prepare.convert import prepare
from sttm_lmms.benchmarks.prepare.report import Report, check

__all__ = ["Report", "check", "prepare"]
