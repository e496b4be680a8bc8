"""What goes into the engine and what comes out."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from sttm_lmms.config import check_integer
from sttm_lmms.errors import unknown
from sttm_lmms.provenance import PROVENANCE_KEY, TIMING_KEY, Provenance

if TYPE_CHECKING:
    from sttm_lmms.video import VideoSettings


GENERATE_SETTINGS = (
    *("repetition_penalty", "no_repeat_ngram_size", "length_penalty", "early_stopping", "min_new_tokens", "max_time"),
    *("min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h", "renormalize_logits", "remove_invalid_values"),
    *("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias", "exponential_decay_length_penalty"),
)
"""Further settings of transformers' ``generate`` that :meth:`GenerationSettings.of` hands on."""


@dataclass(frozen=True)
class GenerationSettings:
    """How an answer is generated; the names are those of transformers and lmms-eval.

    Attributes:
        max_new_tokens: most tokens generated.
        until: texts at which the answer is cut (the text itself is left out).
        do_sample: sample instead of taking the best token; ``temperature``, ``top_p`` and ``top_k``
            belong to it.
        num_beams: beams of beam search; 1 is greedy.
        extra: further arguments handed to ``model.generate`` as they are.
    """

    max_new_tokens: int = 32
    until: tuple[str, ...] = ()
    do_sample: bool = False
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    num_beams: int = 1
    extra: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, **values: Any) -> GenerationSettings:
        """Settings by name: the attributes above, and :data:`GENERATE_SETTINGS`, which go into
        ``extra``.

        Raises:
            ValueError: an unknown name, with the closest one that is known.
        """
        own = {f.name for f in fields(cls)}
        for name in values:
            if name not in own and name not in GENERATE_SETTINGS:
                raise unknown("generation setting", name, {*own - {"extra"}, *GENERATE_SETTINGS})
        extra = {name: value for name, value in values.items() if name not in own}
        given = {name: value for name, value in values.items() if name in own}
        return cls(**{**given, "extra": (*given.get("extra", ()), *extra.items())})

    def __post_init__(self) -> None:
        check_integer("max_new_tokens", self.max_new_tokens, 1)
        check_integer("num_beams", self.num_beams, 1)

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for ``model.generate``; sampling settings are neutralised when not
        sampling."""
        sampling = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        if self.do_sample:
            sampling = {name: value for name, value in sampling.items() if value is not None}
        else:
            sampling = dict.fromkeys(sampling)
        return {
            "max_new_tokens": self.max_new_tokens,
            "do_sample": self.do_sample,
            "num_beams": self.num_beams,
            **sampling,
            **dict(self.extra),
        }


@dataclass(frozen=True)
class Request:
    """One question.

    Attributes:
        messages: chat messages; visual parts carry their source:
            ``{"type": "video", "video": path}`` or frames as
            :meth:`~sttm_lmms.families.Family.read_video` takes them,
            ``{"type": "image", "image": PIL.Image}``.
        generation: how to answer.
        config: settings of the reduction for this request; None takes the engine's.
        video: frame sampling for this request; None takes the engine's.
        video_id: name of the video in a feature store; None takes the file's name without its
            ending.
        visuals_key: what the engine found the visuals to be when the request came in; None before.
    """

    messages: Sequence[Mapping[str, Any]]
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    config: Any = None
    video: VideoSettings | None = None
    video_id: str | None = None
    visuals_key: tuple[tuple[str, Hashable], ...] | None = None

    @property
    def sources(self) -> list[tuple[str, Any]]:
        """``(kind, source)`` of each visual part, in order."""
        return [
            (part["type"], part[part["type"]])
            for message in self.messages
            if not isinstance(message["content"], str)
            for part in message["content"]
            if part["type"] in ("video", "image")
        ]


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What was measured about one request.

    Attributes:
        visual_tokens: visual tokens before reduction.
        kept_tokens: visual tokens after reduction.
        layer_tokens: visual tokens that a decoder layer's attention sees at the prefill, as a mean
            over layers.
        kv_share: KV entries attended to while decoding / all of them; below 1 for methods that edit
            the cache.
        input_tokens: tokens of the prompt, before reduction.
        output_tokens: generated tokens.
        reused: True if the KV prefix of an earlier question was continued.
        timing: seconds of ``video_decode``, ``preprocess``, ``vision``, ``prefill_before``,
            ``merge``, ``prefill_after``, ``prefill``, ``ttft``, ``decode`` and ``end_to_end``. What
            several questions share is counted at the first of them.
        error: why there is no answer.
    """

    visual_tokens: int = 0
    kept_tokens: int = 0
    layer_tokens: float = 0.0
    kv_share: float = 1.0
    input_tokens: int = 0
    output_tokens: int = 0
    reused: bool = False
    timing: dict[str, float] = field(default_factory=dict)
    error: str | None = None

    @property
    def reduced(self) -> bool:
        """True if the visual tokens (or the KV entries attended to) became fewer."""
        return self.layer_tokens < self.visual_tokens or self.kv_share < 1.0

    def record(self, *, video: str = "", provenance: Provenance | None = None) -> dict[str, Any]:
        """The numbers as one JSON dictionary, ``token_counts`` of a line in lmms-eval's sample file.

        Args:
            video: id of the video; the leaderboard's intervals are clustered by it.
            provenance: given for the first answer of a task.
        """
        record: dict[str, Any] = {
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "visual_tokens": self.visual_tokens,
            "kept_tokens": self.kept_tokens,
            "reduced": self.reduced,
            "reused": self.reused,
            "video": video,
            TIMING_KEY: {key: round(seconds, 6) for key, seconds in self.timing.items()},
        }
        if self.layer_tokens:
            record["layer_tokens"] = round(self.layer_tokens, 3)
        if self.error:
            record["error"] = self.error
        if provenance is not None:
            record[PROVENANCE_KEY] = asdict(provenance)
        return record


@dataclass(frozen=True)
class Answer(Reply):
    """A generated answer; ``text`` is empty if the video could not be read."""

    text: str = ""


@dataclass(frozen=True)
class LogLikelihood(Reply):
    """Log-probability of a continuation.

    Attributes:
        logprob: natural logarithm, summed over its tokens; minus infinity where there is none.
        is_greedy: True if greedy decoding would give exactly this continuation.
        tokens: tokens of the continuation.
    """

    logprob: float = float("-inf")
    is_greedy: bool = False
    tokens: int = 0


@dataclass
class Counters:
    """Work done; what reuse saves shows here."""

    videos_decoded: int = 0
    vision_passes: int = 0
    prefills: int = 0
    questions: int = 0


@dataclass(frozen=True)
class Failure:
    """A source that could not be read, and how many questions that left unanswered."""

    source: str
    error: str
    questions: int
