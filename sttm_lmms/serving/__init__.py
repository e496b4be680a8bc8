"""Answers from vLLM.

``vllm_plugin/`` reduces videos inside of vLLM; ``frames.py`` gives it the frames and prompts of
lmms-eval's tasks. Checkpoints that vLLM does not know are seen and merged here, and decoded there
(``embeds.py``). Both are engines (``engine.py``) on one connection (``connection.py``).
"""
