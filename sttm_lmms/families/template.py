"""Families that are prompted by their processor's own chat template and its own text for each
visual."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import transformers
from torch import nn

from sttm_lmms.config import check_choice
from sttm_lmms.errors import CheckpointError
from sttm_lmms.families.assemble import (
    Assembled,
    Segment,
    VisualTokens,
    as_plain_text,
    assemble,
    check_visuals,
    content_parts,
    join_text,
)
from sttm_lmms.families.base import Family
from sttm_lmms.families.checkpoint import load_model, read_json
from sttm_lmms.types import Deepstack, Message, PreparedInput, VisionFeatures

if TYPE_CHECKING:
    from sttm_lmms.video import Video


class TemplateFamily(Family):
    """What the families of newer classes share: features are ``[T, H, W, C]``, prompts the
    processor's."""

    fixed_suffix: ClassVar[str]
    """What follows the last visual token, whatever the question."""
    template_settings: ClassVar[Mapping[str, Any]] = {}
    """Variables of the chat template."""

    def load_model(self, path: Path, **kwargs: Any) -> nn.Module:
        names = read_json(path / "config.json").get("architectures") or ()
        architecture = next(name for name in names if name in self.architectures)
        if getattr(transformers, architecture, None) is None:
            raise CheckpointError(
                f"{path}: transformers {transformers.__version__} has no {architecture}; install a newer one "
                "(pip install -U transformers)"
            )
        return load_model(getattr(transformers, architecture), path, **kwargs)

    def load_processor(self, path: Path, model: Any) -> Any:
        return transformers.AutoProcessor.from_pretrained(path)

    def pad_token(self, processor: Any, kind: str) -> str:
        """The token that stands for one token of an image or video."""
        return str(processor.video_token if kind == "video" else processor.image_token)

    @abstractmethod
    def placeholder_text(self, processor: Any, feature: VisionFeatures) -> str:
        """What the processor writes for a visual: :meth:`pad_token` for each token, with other text
        between them."""

    def positions(self, model: Any, features: Sequence[VisionFeatures], sequence: Assembled) -> torch.Tensor | None:
        """Rotary positions ``[3, 1, L]``, None for 0..L-1."""
        return None

    def split(self, model: Any, feature: VisionFeatures) -> tuple[torch.Tensor, ...]:
        """``[T, H, W, C]`` of the embeddings, and of whatever the decoder adds behind its first
        layers."""
        return (feature.tensor,)

    def segments(self, processor: Any, messages: Sequence[Message]) -> list[Segment]:
        return numbered(render(processor, messages, settings=self.template_settings))

    @torch.no_grad()
    def prepare(
        self,
        model: Any,
        processor: Any,
        messages: Sequence[Message],
        features: Sequence[VisionFeatures],
        *,
        newline: str | None = None,
    ) -> PreparedInput:
        """See :meth:`Family.prepare`. There are no newline tokens; only ``no_token`` is
        accepted."""
        check_visuals(messages, features)
        if newline is not None:
            check_choice("newline", newline, ("no_token",))
        written = [
            (self.placeholder_text(processor, feature), self.pad_token(processor, feature.kind)) for feature in features
        ]
        segments, lengths = fill(render(processor, messages, settings=self.template_settings), written)
        parts = [self.split(model, feature) for feature in features]
        visuals = [
            VisualTokens(
                tokens.flatten(0, 2).to(model.dtype),
                processor.tokenizer.convert_tokens_to_ids(pad),
                _grid(tokens) if feature.kind == "video" else None,
                pieces,
            )
            for feature, (tokens, *_), (_, pad), pieces in zip(features, parts, written, lengths, strict=True)
        ]
        sequence = assemble(
            segments, visuals, processor.tokenizer, model.get_input_embeddings(), fixed_suffix=self.fixed_suffix
        )
        positions = self.positions(model, features, sequence)
        added = list(zip(*(extra for _, *extra in parts), strict=True))
        return PreparedInput(
            input_ids=sequence.input_ids,
            inputs_embeds=sequence.inputs_embeds,
            position_ids=None if positions is None else positions.to(sequence.input_ids.device),
            spans=sequence.spans,
            prefix_length=sequence.prefix_length,
            visual_tokens=sequence.visual_tokens,
            deepstack=Deepstack(
                sequence.visual_mask,
                tuple(torch.cat([part.flatten(0, 2) for part in layer]).to(sequence.inputs_embeds) for layer in added),
            )
            if added
            else None,
        )


def render(
    processor: Any,
    messages: Sequence[Message],
    *,
    chat_template: str | None = None,
    end_of_turn: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> list[str]:
    """The prompt as the text in front of each visual and behind the last one: one piece more than
    there are visuals.

    Special tokens that the texts of the messages spell out are text (see :func:`as_plain_text`).
    The assistant's turn is opened unless the last message is the assistant's, which is then left
    open.

    Args:
        chat_template: in place of the processor's own.
        end_of_turn: what ``chat_template`` writes behind a message.
        settings: variables of the processor's template.

    Raises:
        ValueError: the template leaves a visual out, or writes a placeholder of its own.
    """
    control = control_tokens(processor, chat_template)
    plain = [
        {
            "role": message["role"],
            "content": [
                {"type": "text", "text": as_plain_text(part["text"], control)}
                if part["type"] == "text"
                else {"type": part["type"]}
                for part in content_parts(message)
            ],
        }
        for message in messages
    ]
    open_end = bool(plain) and plain[-1]["role"] == "assistant"
    if chat_template is None:
        text = processor.apply_chat_template(
            plain,
            tokenize=False,
            add_generation_prompt=not open_end,
            continue_final_message=open_end,
            **(settings or {}),
        )
    else:
        text = processor.tokenizer.apply_chat_template(
            plain, chat_template=chat_template, tokenize=False, add_generation_prompt=not open_end
        )
        text = text.removesuffix(end_of_turn) if open_end and end_of_turn else text
    pieces = re.split(f"{re.escape(processor.video_token)}|{re.escape(processor.image_token)}", text)
    wanted = sum(part["type"] != "text" for message in messages for part in content_parts(message))
    if len(pieces) - 1 != wanted:
        raise ValueError(
            f"the prompt holds {len(pieces) - 1} of the placeholders {processor.video_token} and "
            f"{processor.image_token}, but {wanted} visuals; use a chat template that writes one for each visual"
        )
    return pieces


def numbered(pieces: Sequence[str]) -> list[Segment]:
    """The pieces of :func:`render` with the numbers of the visuals between them."""
    segments: list[Segment] = [pieces[0]]
    for number, after in enumerate(pieces[1:]):
        segments += [number, after]
    return join_text(segments)


def frame_places(video: Video) -> dict[str, Any]:
    """Where the frames stand in the file, for their times in the prompt: a variable frame rate as
    milliseconds."""
    if not video.constant_rate:
        return {"video_fps": 1000.0, "frame_indices": [round(1000 * seconds) for seconds in video.timestamps]}
    return {"video_fps": float(video.fps), "frame_indices": [int(index) for index in video.indices]}


_VISUAL_TOKENS = ("video", "image", "start_image", "end_image", "fake_image", "global_image")


def control_tokens(processor: Any, chat_template: str | None = None) -> set[str]:
    """Special tokens that prompts are built of: the placeholders, the ends, and those that the chat
    template writes.

    Others (such as the marks of boxes for grounding) stay special in the texts of users.
    """
    tokenizer, template = processor.tokenizer, str(chat_template or processor.chat_template)
    named = [getattr(processor, f"{name}_token", None) for name in _VISUAL_TOKENS]
    named += [tokenizer.eos_token, tokenizer.pad_token, getattr(tokenizer, "bos_token", None)]
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return {token for token in named if token} | {token for token in special if token in template}


def fill(pieces: Sequence[str], visuals: Sequence[tuple[str, str]]) -> tuple[list[Segment], list[tuple[int, ...]]]:
    """Put the text of each visual where the visual stands.

    Args:
        pieces: from :func:`render`.
        visuals: what the processor writes for each visual, and the pad that stands there for one of
            its tokens.

    Returns:
        The prompt, and the lengths of each visual's runs of tokens.
    """
    segments: list[Segment] = [pieces[0]]
    lengths = []
    for number, ((text, pad), after) in enumerate(zip(visuals, pieces[1:], strict=True)):
        runs = list(re.finditer(f"(?:{re.escape(pad)})+", text))
        lengths.append(tuple(len(run.group()) // len(pad) for run in runs))
        bounds = [0, *(bound for run in runs for bound in run.span()), len(text)]
        for place, (start, end) in enumerate(pairwise(bounds)):
            segments.append(number if place % 2 else text[start:end])
        segments.append(after)
    return join_text(segments), lengths


def _grid(tokens: torch.Tensor) -> tuple[int, int, int]:
    t, h, w, _ = tokens.shape
    return t, h, w
