"""vLLM's CPU runner, which never looks whether a model prunes videos.

``GPUModelRunner.load_model`` sets ``is_multimodal_pruning_enabled``; ``CPUModelRunner.load_model``
(0.32) replaces it and does not, so the position channels of any pruning model would reach its
decoder. No setting mends that, so a property of the class answers in its place. It touches nothing
where vLLM runs on an accelerator.
"""

from __future__ import annotations

import sys
from typing import Any


def enable_position_channels() -> None:
    """Let the CPU runner of this process ask its model, if this process has a CPU runner."""
    module = sys.modules.get("vllm.v1.worker.cpu_model_runner")
    if module is None or "is_multimodal_pruning_enabled" in vars(module.CPUModelRunner):
        return

    def enabled(runner: Any) -> bool:
        from vllm.model_executor.models.interfaces import supports_multimodal_pruning

        config = runner.model_config.multimodal_config
        asked = config is not None and config.is_multimodal_pruning_enabled()
        return asked and supports_multimodal_pruning(runner.get_model())

    # A property has a setter or assignments fail; the runner's own False is not remembered.
    module.CPUModelRunner.is_multimodal_pruning_enabled = property(enabled, lambda runner, value: None)
