"""The life of a context: threads, interruptions, compiled code, and what is said when it ends."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from footage import VIDEO, moving_squares
from transformers import Qwen2Config, Qwen2ForCausalLM

from sttm_lmms import STTMConfig, VideoSpan, encode_video, get_method, reduce_tokens
from sttm_lmms.decoder import CACHE
from sttm_lmms.errors import UnsupportedModelError

GRID, LENGTH = (4, 4, 4), 76
SPAN, METHOD = VideoSpan(5, GRID), STTMConfig(budget=0.5, start_layer=1)


@pytest.fixture(scope="module")
def model() -> Any:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "vocab_size": 64}
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(num_attention_heads=2, num_key_value_heads=1, **sizes)).eval()


def prompt(seed: int) -> torch.Tensor:
    return torch.randn(1, LENGTH, 32, generator=torch.Generator().manual_seed(seed))


def answer(model: Any, seed: int, steps: int = 12) -> torch.Tensor:
    """Logits of a prefill and greedy steps behind it."""
    with torch.inference_mode():
        output = model(inputs_embeds=prompt(seed), use_cache=True)
        logits = [output.logits[0, -1]]
        for _ in range(steps):
            ids, cache = logits[-1].argmax().view(1, 1), getattr(output, CACHE)
            output = model(input_ids=ids, use_cache=True, **{CACHE: cache})
            logits.append(output.logits[0, -1])
    return torch.stack(logits)


def together(tasks: list[Callable[[], Any]]) -> list[Any]:
    """What tasks return, or the errors they raise, in threads at once."""
    found: list[Any] = [None] * len(tasks)

    def run(index: int) -> None:
        try:
            found[index] = tasks[index]()
        except Exception as error:
            found[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return found


def test_threads_share_a_context(model: Any) -> None:
    with reduce_tokens(model, METHOD, spans=[SPAN]) as report:
        alone = [answer(model, seed) for seed in range(4)]
        found = together([lambda seed=seed: answer(model, seed) for seed in range(4)])  # type: ignore[misc]
    for logits, expected in zip(found, alone, strict=True):
        assert torch.equal(logits, expected)
    assert len(report.events) == 8


def test_a_prefix_answers_threads(tiny) -> None:
    model, processor = tiny("llava_video")
    prefixes = [encode_video(model, processor, moving_squares(seed, 6), METHOD, settings=VIDEO) for seed in range(2)]
    tasks = [
        lambda prefix=prefix, question=question: prefix.ask(question, max_new_tokens=6)
        for prefix in prefixes
        for question in ("Why?", "Where?")
    ]
    assert together(tasks) == [task() for task in tasks]


def test_a_thread_that_goes_on_behind_the_context_fails(model: Any) -> None:
    began, left = threading.Event(), threading.Event()

    def slow() -> torch.Tensor:
        with torch.inference_mode():
            cache = getattr(model(inputs_embeds=prompt(0), use_cache=True), CACHE)
            began.set()
            left.wait(60)
            return model(input_ids=torch.tensor([[1]]), use_cache=True, **{CACHE: cache}).logits

    def leave() -> None:
        with reduce_tokens(model, METHOD, spans=[SPAN]):
            started.set()
            began.wait(60)
        left.set()

    started = threading.Event()
    error, _ = together([lambda: started.wait(60) and slow(), leave])
    assert isinstance(error, UnsupportedModelError)
    assert "the context was left" in str(error)


def test_one_context_at_a_time(model: Any) -> None:
    def enter() -> None:
        with reduce_tokens(model, METHOD):
            pass

    with reduce_tokens(model, METHOD):
        with pytest.raises(UnsupportedModelError, match="already"):
            enter()
        assert "already" in str(together([enter])[0])


@pytest.mark.parametrize("layer", [0, 2])
def test_a_pass_that_is_interrupted_leaves_nothing_behind(model: Any, layer: int) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with reduce_tokens(model, METHOD, spans=[SPAN]):
        expected, cache = answer(model, 0), None
        with torch.inference_mode():
            cache = getattr(model(inputs_embeds=prompt(1), use_cache=True), CACHE)
        for step in (prompt(0), torch.zeros(1, 1, 32)):
            handle = model.model.layers[layer].register_forward_hook(interrupt)
            with pytest.raises(KeyboardInterrupt), torch.inference_mode():
                model(inputs_embeds=step, use_cache=True, **({} if step.shape[1] > 1 else {CACHE: cache}))
            handle.remove()
            assert torch.equal(answer(model, 0), expected)
        with pytest.raises(UnsupportedModelError, match="was interrupted"):
            model(input_ids=torch.tensor([[1]]), **{CACHE: cache})
        handle = model.model.layers[layer].register_forward_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            answer(model, 0)
    handle.remove()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("compiled", ["model", "forward", "layers", "a function around it"])
def test_what_was_compiled_before_is_reduced(compiled: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 64}
    model: Any = Qwen2ForCausalLM(Qwen2Config(num_attention_heads=2, num_key_value_heads=1, **sizes)).eval()
    call: Any = model
    if compiled == "model":
        model.compile(backend="eager")
    elif compiled == "forward":
        model.forward = torch.compile(model.forward, backend="eager")
    elif compiled == "layers":
        for layer in model.model.layers:
            layer.compile(backend="eager")
    else:
        call = torch.compile(lambda **inputs: model(**inputs), backend="eager")
    with torch.inference_mode():
        stock = call(inputs_embeds=prompt(0)).logits
        with reduce_tokens(model, METHOD, spans=[SPAN]) as report:
            logits = call(inputs_embeds=prompt(0)).logits
        assert report.kept_tokens < report.visual_tokens
        assert logits.shape[1] == LENGTH - report.visual_tokens + report.kept_tokens
        torch.testing.assert_close(call(inputs_embeds=prompt(0)).logits, stock)
    torch._dynamo.reset()


def test_a_context_in_which_nothing_was_reduced_warns(model: Any) -> None:
    with pytest.warns(UserWarning, match="none of 1 videos"), reduce_tokens(model, STTMConfig(1.5, 1.5), spans=[SPAN]):
        answer(model, 0, steps=0)


def test_a_layer_that_is_not_there_is_named_by_its_setting(model: Any) -> None:
    with (
        pytest.raises(ValueError, match=r"fastv: layer=99 is out of range; this model has layers 0\.\.2"),
        reduce_tokens(model, get_method("fastv")(budget=0.5, layer=99)),
    ):
        pass
