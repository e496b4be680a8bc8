"""vLLM's LLaVA-OneVision with reduced videos. Imports vLLM; named by :data:`~.ARCHITECTURES` alone.

Its positions are 0, 1, 2, ... of whatever is there, so only the count and the rows change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.model_executor.models import llava_onevision
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.parse import VideoProcessorItems
from vllm.multimodal.processing import PromptReplacement

from sttm_lmms.serving.vllm_plugin.model import asked_for, log_reduction, salted
from sttm_lmms.serving.vllm_plugin.reduction import reduce_video, reserved


def _side(hf_config: Any) -> int:
    """Tokens along one side of a frame, after pooling by two."""
    vision = hf_config.vision_config
    return -(-(vision.image_size // vision.patch_size) // 2)


class _Processor(llava_onevision.LlavaOnevisionMultiModalProcessor):
    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        config = self.info.get_hf_config()
        method = asked_for(config, self.info.ctx.get_mm_config())
        updates = super()._get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)
        if method is None:
            return updates

        def replacement(index: int) -> list[int]:
            frames = mm_items.get_items("video", VideoProcessorItems).get_num_frames(index)
            count = reserved(method, (frames, _side(config), _side(config)))
            return [config.video_token_index] * (count + 1)  # and one newline token behind them

        def reduced(update: Any) -> Any:
            if update.modality != "video":
                return update
            return PromptReplacement(modality="video", target=update.target, replacement=replacement)

        return [reduced(update) for update in updates]

    def _get_mm_hashes(self, inputs: Any) -> Any:
        return salted(super()._get_mm_hashes(inputs), self.info)


@MULTIMODAL_REGISTRY.register_processor(
    _Processor,
    info=llava_onevision.LlavaOnevisionProcessingInfo,
    dummy_inputs=llava_onevision.LlavaOnevisionDummyInputsBuilder,
)
class LlavaOnevisionForConditionalGeneration(llava_onevision.LlavaOnevisionForConditionalGeneration):
    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        model_config = vllm_config.model_config
        self.reduction = asked_for(model_config.hf_config, model_config.multimodal_config)

    def _process_video_pixels(self, inputs: Any) -> Any:
        videos = super()._process_video_pixels(inputs)
        if self.reduction is None:
            return videos
        return [self._reduced(rows.flatten(0, -2)) for rows in videos]

    def _reduced(self, rows: torch.Tensor) -> torch.Tensor:
        """``[T*H*W + 1, C]``, the newline token last."""
        assert self.reduction is not None
        side, channels = _side(self.config), rows.shape[1]
        grid = ((len(rows) - 1) // side**2, side, side)
        head_dim = channels // self.config.text_config.num_attention_heads
        kept, _, joined = reduce_video(self.reduction, rows[:-1], grid, channels, head_dim)
        log_reduction(self.reduction, grid, len(kept), joined)
        return torch.cat((kept, rows[-1:]))
