"""A running vLLM: in this process, or in a process of its own Python environment."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch

from sttm_lmms.errors import STTMError
from sttm_lmms.serving import vllm_process
from sttm_lmms.serving.vllm_process import Prompt, Reply


class LLM(Protocol):
    """What the engine asks of vLLM."""

    version: str

    def ask(self, prompts: Sequence[Prompt]) -> list[Reply]:
        """New token ids of each prompt, in order, and the tokens of it that were in the prefix cache."""

    def close(self) -> None:
        """Let go of the device's memory."""


def check_vllm(python: Path | None = None) -> None:
    """Raise ``STTMError`` if vLLM is not installed, or the Python of its own environment is not there."""
    if python is not None:
        if not python.expanduser().is_file():
            raise STTMError(f"vllm_python={python}: no such file; give the bin/python of an environment with vLLM")
    elif "vllm" not in sys.modules and find_spec("vllm") is None:
        raise STTMError(
            "vLLM is not installed: pip install 'sttm-lmms[vllm]', or vllm_python=DIR/bin/python for one in an "
            "environment of its own"
        )


def open_vllm(settings: Mapping[str, Any], python: Path | None = None) -> LLM:
    """Start vLLM.

    Args:
        settings: of ``vllm.LLM``.
        python: of another environment that has vLLM (which pins torch and transformers); None is this one.

    Raises:
        STTMError: vLLM is not installed, of an unknown version, or did not start.
    """
    check_vllm(python)
    return _Here(settings) if python is None else _Elsewhere(settings, python.expanduser())


class _Here:
    def __init__(self, settings: Mapping[str, Any]) -> None:
        try:
            self._llm, self.version = vllm_process.open_llm(settings)
        except RuntimeError as error:
            raise STTMError(f"vLLM did not start: {error}") from error

    def ask(self, prompts: Sequence[Prompt]) -> list[Reply]:
        return vllm_process.ask(self._llm, prompts)

    def close(self) -> None:
        self._llm = None


class _Elsewhere:
    """Over a pipe. A tensor that several prompts share is sent once a pack."""

    def __init__(self, settings: Mapping[str, Any], python: Path) -> None:
        from multiprocessing import Pipe
        from subprocess import Popen

        self._python = python
        self._pipe, theirs = Pipe()
        script = Path(vllm_process.__file__).resolve()
        # Isolated: neither the folder of the script nor PYTHONPATH of this environment belongs on that one's path.
        command = [str(python), "-I", str(script), str(theirs.fileno())]
        self._process = Popen(command, pass_fds=[theirs.fileno()])
        theirs.close()
        self.version: str = self._exchange(dict(settings))["version"]

    def ask(self, prompts: Sequence[Prompt]) -> list[Reply]:
        from safetensors.torch import save

        tensors: dict[str, torch.Tensor] = {}
        named = []
        for shared, own, sampling in prompts:
            names = [str(tensor.data_ptr()) if tensor.numel() else "none" for tensor in (shared, own)]
            tensors.update(zip(names, (shared, own), strict=True))
            named.append((*names, dict(sampling)))
        return list(self._exchange({"tensors": save(tensors), "prompts": named})["replies"])

    def close(self) -> None:
        self._pipe.close()
        self._process.wait()

    def _exchange(self, message: Any) -> dict[str, Any]:
        try:
            self._pipe.send(message)
            reply: dict[str, Any] = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise STTMError(f"vLLM of {self._python} ended without an answer; its own lines say why") from error
        if "error" in reply:
            raise STTMError(f"vLLM of {self._python}: {reply['error']}")
        return reply
