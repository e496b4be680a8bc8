"""For checkpoints that vLLM does not know: seen and merged here, decoded there.

vLLM gets the decoder alone, and prompts as embeddings; it takes them for text, with one position a
token, so this is for the LLaVA families.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sttm_lmms.methods.base import Method, Stage
from sttm_lmms.runtime.recent import Recent
from sttm_lmms.runtime.requests import Request
from sttm_lmms.runtime.timing import Phases
from sttm_lmms.runtime.videos import Batch, VideoTokens, reduce_videos
from sttm_lmms.serving.engine import VLLMEngine, VLLMPrompt
from sttm_lmms.serving.limits import check_served
from sttm_lmms.types import PreparedInput, VisionFeatures


class EmbedsEngine(VLLMEngine):
    """A :class:`VLLMEngine` that hands over merged embeddings; the decoder's layers may be missing
    in its model."""

    def __init__(self, *model_and_method: Any, **settings: Any) -> None:
        super().__init__(*model_and_method, **settings)
        self._check(self.config)
        self._merged: Recent[torch.Tensor] = Recent(settings.get("keep", 1))

    def _check(self, config: Any) -> None:
        check_served(config, self.family.name)

    def _vllm_prompt(self, request: Request, visuals: Sequence[VisionFeatures], phases: Phases) -> VLLMPrompt:
        prepared = self._prepare(request, visuals)
        key = self._prefix_key(request, prepared)
        # One tensor for all questions of a video: the prefix cache hashes its bytes.
        merged = self._merged.get(key) if self.reuse == "prefix" else None
        if merged is None:
            mark = self._stopwatch.mark
            began = mark()
            merged = merged_prefix(request.config, prepared, self.model.config)
            phases.add("merge", began, mark())
            self._merged.put(key, merged)
        embeds = torch.cat((merged, prepared.inputs_embeds[0, prepared.prefix_length :].cpu()))
        ids = prepared.input_ids[0]
        places = torch.isin(ids, torch.tensor(self._pads, device=ids.device)).nonzero()
        removed = prepared.prefix_length - len(merged)
        return VLLMPrompt(
            request,
            {"prompt_embeds": embeds},
            nbytes=embeds.nbytes,
            text_before=int(places[0]) if len(places) else len(ids),
            removed=removed,
            phases=phases,
            kept_tokens=prepared.visual_tokens - removed,
        )


@torch.inference_mode()
def merged_prefix(method: Method | None, prepared: PreparedInput, config: Any) -> torch.Tensor:
    """``[P, C]`` on the host: text before, videos and time instruction, the videos reduced as the
    decoder hooks do in front of layer 0.

    Args:
        method: acts there alone (see :func:`~sttm_lmms.serving.limits.check_served`); None reduces
            nothing.
        config: the whole model's.
    """
    embeds = prepared.inputs_embeds[:, : prepared.prefix_length]
    if method is not None and prepared.spans:
        text = config.text_config
        heads = text.hidden_size // text.num_attention_heads
        videos = [VideoTokens.of(span, 0, embeds, heads) for span in prepared.spans]
        embeds, _, _ = reduce_videos(
            method, Stage(0), embeds, Batch(None, None, [0]), videos, layers=text.num_hidden_layers
        )
    return embeds[0].detach().cpu()
