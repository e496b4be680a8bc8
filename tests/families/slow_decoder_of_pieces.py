"""A reduced decoder written out: every layer called by hand on whole sequences, without hooks and
without a cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sttm_lmms import merge_video_tokens
from sttm_lmms.decoder import find_decoder


@dataclass
class Prompt:
    """One prompt before the decoder: ``embeds [L, C]``, ``positions [L]`` or ``[3, L]``, spans, and
    what is added."""

    embeds: torch.Tensor
    positions: torch.Tensor
    spans: tuple
    added: list[torch.Tensor]


def prompt_of(prepared) -> Prompt:
    """From a family's prepared input; what is added behind each first layer as ``[L, C]`` with
    zeros at text."""
    length = prepared.input_ids.shape[1]
    positions = torch.arange(length) if prepared.position_ids is None else prepared.position_ids[:, 0]
    added = []
    for features in prepared.deepstack.features if prepared.deepstack else ():
        full = torch.zeros_like(prepared.inputs_embeds[0])
        full[prepared.deepstack.mask[0]] = features
        added.append(full)
    return Prompt(prepared.inputs_embeds[0], positions, prepared.spans, added)


@torch.no_grad()
def slow_logits(model, prompt: Prompt, config, answer: list[int]) -> tuple[torch.Tensor, list[int]]:
    """Logits ``[n + 1, V]`` after the prompt and after each token of ``answer``, and which tokens
    of the prompt are left from the start layer on."""
    decoder = find_decoder(model)
    following = int(prompt.positions[..., -1].max()) + 1
    text = model.get_input_embeddings()(torch.tensor(answer, dtype=torch.long))
    hidden = torch.cat([prompt.embeds, text])
    positions = torch.cat([prompt.positions, _following(prompt.positions, following, len(answer))], dim=-1)
    added = [torch.cat([full, torch.zeros_like(text)]) for full in prompt.added]
    left = list(range(len(prompt.embeds)))
    for number, layer in enumerate(decoder.layers):
        if number == config.start_layer:
            hidden, groups = _merged(hidden, prompt.spans, config, decoder.config)
            left = [place for place in sorted(groups) if place < len(prompt.embeds)]
            added = [torch.stack([full[groups[place]].mean(0) for place in sorted(groups)]) for full in added]
            positions = positions[:, sorted(groups)] if positions.ndim == 2 else torch.arange(len(groups))
        axes = positions[:, None] if positions.ndim == 2 else positions[None]
        length = len(hidden)
        recurrent = hasattr(layer, "linear_attn")  # sees the whole sequence in its order, and needs no mask
        mask = None if recurrent else torch.full((length, length), -torch.inf).triu(1)[None, None]
        hidden = layer(
            hidden[None],
            attention_mask=mask,
            position_ids=None,
            past_key_values=None,
            position_embeddings=decoder.rotary_emb(hidden[None], axes),
        )
        hidden = (hidden[0] if isinstance(hidden, tuple) else hidden)[0]
        if number < len(added):
            hidden = hidden + added[number]
    logits = model.lm_head(decoder.norm(hidden))
    return logits[-len(answer) - 1 :], left


def _following(positions: torch.Tensor, first: int, count: int) -> torch.Tensor:
    new = torch.arange(first, first + count)
    return new.expand(3, -1) if positions.ndim == 2 else new


def _merged(hidden, spans, config, sizes) -> tuple[torch.Tensor, dict[int, list[int]]]:
    """Merged hidden states, and for each token that is left its place before and the places of its
    group."""
    groups = {place: [place] for place in range(len(hidden))}
    values = {place: hidden[place] for place in range(len(hidden))}
    for span in spans:
        places = [start + offset for start, length in span.runs for offset in range(length)]
        for place in places:
            del groups[place], values[place]
        _, height, width = span.grid
        head_dim = sizes.hidden_size // sizes.num_attention_heads
        merged = merge_video_tokens(hidden[places].reshape(*span.grid, -1), config, head_dim)
        owners = merged.source_map.flatten().tolist()
        for token, (t, y, x, *_) in enumerate(merged.boxes.tolist()):
            place = places[(t * height + y) * width + x]
            groups[place] = [places[cell] for cell, owner in enumerate(owners) if owner == token]
            values[place] = merged.features[token]
    return torch.stack([values[place] for place in sorted(groups)]), groups
