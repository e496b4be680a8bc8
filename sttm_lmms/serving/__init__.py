"""Answers from vLLM: our vision tower and merging in front, vLLM's decoder behind.

``engine.py`` is the engine, ``connection.py`` all that touches vLLM, ``limits.py`` what is refused
and why.
"""
