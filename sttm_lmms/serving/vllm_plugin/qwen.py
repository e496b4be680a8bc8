"""vLLM's Qwen-VL models with reduced videos. Imports vLLM; named by :data:`~.ARCHITECTURES` alone.

:class:`ReducedVideosProcessor` stands in front of the processor that counts placeholders,
:class:`ReducedVideos` in front of the model that fills them; what they have in common with vLLM's
classes is inherited.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from vllm.config import VllmConfig
from vllm.model_executor.models import qwen2_5_vl, qwen2_vl, qwen3_5, qwen3_vl, qwen3_vl_moe
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.processing import PromptReplacement
from vllm.utils.gpu_sync_debug import gpu_sync_allowed

from sttm_lmms.serving.vllm_plugin import cpu
from sttm_lmms.serving.vllm_plugin.channels import split_integers, with_integers
from sttm_lmms.serving.vllm_plugin.model import asked_for, log_reduction, salted, token_grid
from sttm_lmms.serving.vllm_plugin.positions import (
    CARRIED,
    Placeholder,
    Run,
    next_delta,
    place_rows,
    prompt_positions,
    row_values,
)
from sttm_lmms.serving.vllm_plugin.reduction import Grid, reduce_video, reserved


class ReducedVideosProcessor:
    """In front of one of vLLM's processors: a video has as many placeholders as its method will
    keep."""

    info: Any

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        config = self.info.get_hf_config()
        method = asked_for(config, self.info.ctx.get_mm_config())
        updates = super()._get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)  # type: ignore[misc]
        if method is None:
            return updates

        def replacement(index: int) -> Any:
            item = out_mm_kwargs["video"][index]
            grid = token_grid(item["video_grid_thw"].data, config)
            return self._placeholders(item, grid, reserved(method, grid))

        def reduced(update: Any) -> Any:
            if update.modality != "video":
                return update
            return PromptReplacement(modality="video", target=update.target, replacement=replacement)

        return [reduced(update) for update in updates]

    def _placeholders(self, item: Any, grid: Grid, count: int) -> Any:
        return [self.info.get_hf_config().video_token_id] * count

    def _get_mm_hashes(self, inputs: Any) -> Any:
        # vLLM's keys say nothing about how a video is reduced, and stores may be shared between
        # servers.
        hashes = super()._get_mm_hashes(inputs)  # type: ignore[misc]
        return salted(hashes, self.info)


class TimestampedProcessor(ReducedVideosProcessor):
    """Of the families that write a timestamp in front of each frame: all kept tokens are announced
    in the first one, and every token of the run, text too, is a row of the encoder's output."""

    def _placeholders(self, item: Any, grid: Grid, count: int) -> Any:
        config = self.info.get_hf_config()
        return qwen3_vl.Qwen3VLMultiModalProcessor.get_video_repl(
            tokens_per_frame=[count] + [0] * (grid[0] - 1),
            timestamps=item["timestamps"].data,
            tokenizer=self.info.get_tokenizer(),
            vision_start_token_id=config.vision_start_token_id,
            vision_end_token_id=config.vision_end_token_id,
            video_token_id=config.video_token_id,
            select_token_id=False,
        )


class ReducedVideos:
    """In front of one of vLLM's models: reduces what the vision tower returns, and keeps positions
    right."""

    supports_multimodal_pruning: ClassVar[bool] = True
    supported_video_pruning_methods: ClassVar[tuple[str, ...]] = ("evs",)  # vLLM's default is looked for here

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        self.config: Any
        model_config = vllm_config.model_config
        self.reduction = asked_for(model_config.hf_config, model_config.multimodal_config)
        cpu.enable_position_channels()

    # -- the vision tower's output -----------------------------------------------------------------------------

    def _process_image_input(self, image_input: Any) -> tuple[torch.Tensor, ...]:
        images = super()._process_image_input(image_input)  # type: ignore[misc]
        if self.reduction is None:
            return images
        grids = [token_grid(grid, self.config) for grid in image_input["image_grid_thw"]]
        return tuple(self._carry(rows, Run.of_grid(grid)) for rows, grid in zip(images, grids, strict=True))

    def _process_video_input(self, video_input: Any) -> tuple[torch.Tensor, ...]:
        videos = super()._process_video_input(video_input)  # type: ignore[misc]
        if self.reduction is None:
            return videos
        grids = [token_grid(grid, self.config) for grid in video_input["video_grid_thw"]]
        with gpu_sync_allowed():
            return tuple(
                self._reduced(rows, grid, number, video_input)
                for number, (rows, grid) in enumerate(zip(videos, grids, strict=True))
            )

    def _reduced(self, rows: torch.Tensor, grid: Grid, number: int, video_input: Any) -> torch.Tensor:
        channels = self.config.get_text_config().hidden_size
        assert self.reduction is not None
        head_dim = channels // self.config.get_text_config().num_attention_heads
        rows, kept, joined = reduce_video(self.reduction, rows, grid, channels, head_dim)
        log_reduction(self.reduction, grid, len(rows), joined)
        return self._video_rows(rows, kept, grid, number, video_input)

    def _video_rows(
        self, rows: torch.Tensor, kept: torch.Tensor, grid: Grid, number: int, video_input: Any
    ) -> torch.Tensor:
        """The rows of a video's placeholders, positions behind them."""
        return self._carry(rows, Run.of_grid(grid, self._interval(number, video_input)), kept)

    def _interval(self, number: int, video_input: Any) -> float:
        return 1.0

    def _carry(self, rows: torch.Tensor, run: Run, kept: torch.Tensor | None = None) -> torch.Tensor:
        values = row_values(run, torch.arange(len(rows)) if kept is None else kept)
        return with_integers(rows, values.to(rows.device))

    def _postprocess_image_embeds_evs(self, embeds: Any, image_input: Any) -> Any:
        if self.reduction is not None:  # they have their channels already
            return embeds
        return super()._postprocess_image_embeds_evs(embeds, image_input)  # type: ignore[misc]

    def _postprocess_video_embeds_evs(self, embeds: Any, video_input: Any) -> Any:
        if self.reduction is not None:
            return embeds
        return super()._postprocess_video_embeds_evs(embeds, video_input)  # type: ignore[misc]

    def get_encoder_cudagraph_config(self) -> Any:
        config = super().get_encoder_cudagraph_config()  # type: ignore[misc]
        if self.reduction is not None:
            config.modalities = []  # graphs go round the methods above
        return config

    # -- positions ---------------------------------------------------------------------------------------------

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: Sequence[Any]
    ) -> tuple[torch.Tensor, int]:
        if self.reduction is None:
            return super().get_mrope_input_positions(input_tokens, mm_features)  # type: ignore[misc]
        placeholders = []
        for feature in sorted(mm_features, key=lambda feature: feature.mm_position.offset):
            place = feature.mm_position
            tokens = input_tokens[place.offset : place.offset + place.length]
            placeholders.append(Placeholder(place.offset, place.length, self._advance(feature, tokens)))
        return prompt_positions(len(input_tokens), placeholders)

    def _advance(self, feature: Any, tokens: list[int]) -> int:
        """How far text goes on behind an image or video: where it would behind all of its
        tokens."""
        t, h, w = token_grid(feature.data[f"{feature.modality}_grid_thw"].data, self.config)
        interval = 1.0
        if feature.modality == "video" and (seconds := feature.data.get("second_per_grid_ts")) is not None:
            interval = float(seconds.data) * self.config.vision_config.tokens_per_second
        return int(Run.of_grid((t, h, w), interval).positions().max()) + 1

    def recompute_mrope_positions(
        self,
        input_ids: list[int] | torch.Tensor,
        multimodal_embeddings: Sequence[torch.Tensor],
        mrope_positions: torch.Tensor,
        num_computed_tokens: int,
    ) -> tuple[Sequence[torch.Tensor], torch.Tensor, int]:
        if self.reduction is None:
            return super().recompute_mrope_positions(  # type: ignore[misc]
                input_ids, multimodal_embeddings, mrope_positions, num_computed_tokens
            )
        with gpu_sync_allowed():
            split = [split_integers(rows, CARRIED) for rows in multimodal_embeddings]
            positions = place_rows(
                torch.as_tensor(input_ids, device=mrope_positions.device),
                [values.to(mrope_positions.device) for _, values in split],
                mrope_positions,
                num_computed_tokens,
                self.config.vision_start_token_id,
                (self.config.image_token_id, self.config.video_token_id),
            )
            return [rows for rows, _ in split], positions, next_delta(positions)


class TimedVideos(ReducedVideos):
    """Qwen2.5-VL: the first position axis counts in time."""

    def _interval(self, number: int, video_input: Any) -> float:
        seconds = video_input.get("second_per_grid_ts")
        if seconds is None:
            return 1.0
        return float(seconds[number]) * self.config.vision_config.tokens_per_second


class TimestampedVideos(ReducedVideos):
    """Qwen3-VL and Qwen3.5: a timestamp in front of each frame, and each frame a grid of its
    own."""

    def _video_rows(
        self, rows: torch.Tensor, kept: torch.Tensor, grid: Grid, number: int, video_input: Any
    ) -> torch.Tensor:
        t, h, w = grid
        model: Any = self
        timestamps = video_input["timestamps"][number]
        mask = torch.zeros(t * h * w, dtype=torch.bool, device=rows.device)
        mask[kept] = True
        size = video_input["video_grid_thw"][number].tolist()
        filled = model._create_final_video_embeddings(
            video_embeddings=rows,
            num_tokens_per_frame=mask.view(t, -1).sum(1).tolist(),
            timestamps=timestamps,
            video_grid_thw=size,
            retention_mask=mask,
        )
        filled = filled[:, :-5]  # vLLM's own positions, rounded to the embeddings' dtype
        return self._carry(filled, self._run(grid, timestamps), kept)

    def _run(self, grid: Grid, timestamps: Any) -> Run:
        t, h, w = grid
        model: Any = self
        ids = qwen3_vl.Qwen3VLMultiModalProcessor.get_video_repl(
            tokens_per_frame=[h * w] * t,
            timestamps=timestamps,
            tokenizer=model._tokenizer,
            vision_start_token_id=self.config.vision_start_token_id,
            vision_end_token_id=self.config.vision_end_token_id,
            video_token_id=self.config.video_token_id,
        ).full
        marks = [place for place, token in enumerate(ids) if token == self.config.vision_start_token_id]
        return Run(len(ids), tuple((mark + 1, (1, h, w)) for mark in marks), lead=marks[0])

    def _advance(self, feature: Any, tokens: list[int]) -> int:
        if feature.modality == "image":
            return super()._advance(feature, tokens)
        t, h, w = token_grid(feature.data["video_grid_thw"].data, self.config)
        text = sum(token != self.config.video_token_id for token in tokens)
        return text + t * max(h, w)


# -- vLLM's models, under vLLM's names ---------------------------------------------------------------------------


class _Qwen2Processor(ReducedVideosProcessor, qwen2_vl.Qwen2VLMultiModalProcessor):
    pass


class _Qwen25Processor(ReducedVideosProcessor, qwen2_5_vl.Qwen2_5_VLMultiModalProcessor):
    pass


class _Qwen3Processor(TimestampedProcessor, qwen3_vl.Qwen3VLMultiModalProcessor):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    _Qwen2Processor, info=qwen2_vl.Qwen2VLProcessingInfo, dummy_inputs=qwen2_vl.Qwen2VLDummyInputsBuilder
)
class Qwen2VLForConditionalGeneration(ReducedVideos, qwen2_vl.Qwen2VLForConditionalGeneration):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    _Qwen25Processor, info=qwen2_5_vl.Qwen2_5_VLProcessingInfo, dummy_inputs=qwen2_5_vl.Qwen2_5_VLDummyInputsBuilder
)
class Qwen2_5_VLForConditionalGeneration(TimedVideos, qwen2_5_vl.Qwen2_5_VLForConditionalGeneration):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    _Qwen3Processor, info=qwen3_vl.Qwen3VLProcessingInfo, dummy_inputs=qwen3_vl.Qwen3VLDummyInputsBuilder
)
class Qwen3VLForConditionalGeneration(TimestampedVideos, qwen3_vl.Qwen3VLForConditionalGeneration):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    _Qwen3Processor, info=qwen3_vl_moe.Qwen3VLMoeProcessingInfo, dummy_inputs=qwen3_vl.Qwen3VLDummyInputsBuilder
)
class Qwen3VLMoeForConditionalGeneration(TimestampedVideos, qwen3_vl_moe.Qwen3VLMoeForConditionalGeneration):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    _Qwen3Processor, info=qwen3_5.Qwen3_5ProcessingInfo, dummy_inputs=qwen3_vl.Qwen3VLDummyInputsBuilder
)
class Qwen3_5ForConditionalGeneration(TimestampedVideos, qwen3_5.Qwen3_5ForConditionalGeneration):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    _Qwen3Processor, info=qwen3_5.Qwen3_5MoeProcessingInfo, dummy_inputs=qwen3_vl.Qwen3VLDummyInputsBuilder
)
class Qwen3_5MoeForConditionalGeneration(TimestampedVideos, qwen3_5.Qwen3_5MoeForConditionalGeneration):
    pass
