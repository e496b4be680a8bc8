"""The ChatML prompt that LLaVA-Video and LLaVA-OneVision were trained with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sttm_lmms.families.assemble import Segment, content_parts, join_text
from sttm_lmms.types import Message

SYSTEM_PROMPT = "You are a helpful assistant."


def time_instruction(metadata: Mapping[str, Any]) -> str:
    """LLaVA-Video's sentence about length and times of the frames.

    Args:
        metadata: ``video_time`` in seconds, ``num_frames``, and ``frame_time``: seconds of each frame, or the text
            ``"0.00s,1.00s,..."`` that published feature files hold.
    """
    times = metadata["frame_time"]
    if not isinstance(times, str):
        times = ",".join(f"{t:.2f}s" for t in times)
    return (
        f"The video lasts for {float(metadata['video_time']):.2f} seconds, and {metadata['num_frames']} frames are "
        f"uniformly sampled from it. These frames are located at {times}. "
        "Please answer the following questions related to this video."
    )


def render(messages: Sequence[Message], instructions: Mapping[int, str] | None = None) -> list[Segment]:
    """Text, with the number of a visual where it stands.

    A visual and the text beside it are separated by a newline, two visuals by a blank. The default system prompt is
    added where the messages have none; the assistant's turn is opened unless the last message is the assistant's,
    which is then left open to be continued.

    Args:
        instructions: sentence that follows the n-th visual, on a line of its own.
    """
    instructions = instructions or {}
    pieces: list[Segment] = []
    if not messages or messages[0]["role"] != "system":
        pieces.append(f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n")
    number = 0
    for message in messages:
        pieces.append(f"<|im_start|>{message['role']}\n")
        before: str | None = None
        for part in content_parts(message):
            if before is not None:
                pieces.append(_separator(before, part["type"], instructed=number - 1 in instructions))
            before = part["type"]
            if before == "text":
                pieces.append(part["text"])
                continue
            pieces.append(number)
            if number in instructions:
                pieces.append("\n" + instructions[number])
            number += 1
        pieces.append("<|im_end|>\n")
    if messages and messages[-1]["role"] == "assistant":
        pieces.pop()
    else:
        pieces.append("<|im_start|>assistant\n")
    return join_text(pieces)


def _separator(before: str, after: str, *, instructed: bool) -> str:
    texts = (before == "text") + (after == "text")
    if texts == 2:
        return ""
    return "\n" if texts == 1 or instructed else " "
