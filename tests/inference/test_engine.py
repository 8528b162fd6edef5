"""The engine's answers equal those of transformers whatever runs at the same time; requests fail and end alone."""

import operator
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BloomConfig, BloomForCausalLM, PreTrainedTokenizerFast

from caldera.batches.image_sources import DecodedImages
from caldera.conversation import Conversation, ImageRef, Turn
from caldera.errors import EngineError, QueueFullError, UsageError
from caldera.formats.assemble import assemble
from caldera.images.decoding import open_image
from caldera.inference.engine import AnswerStream, Engine, EngineConfig, Request, SamplingParams
from caldera.inference.llama_decoder import LlamaDecoder
from caldera.inference.prompts import Prompt
from caldera.model.bundle import LlavaBundle

GREEDY = SamplingParams(max_new_tokens=23)
SAMPLED = SamplingParams(max_new_tokens=23, temperature=1.3, top_p=0.9, top_k=50)
FEW = EngineConfig(slots=3, prefill_chunk_size=7)
"""Few slots and small chunks: requests wait, join and leave, and prompts are prefilled in parts."""


@pytest.fixture(params=["allow_fast_decoder", "transformers"])
def engine(assistant: LlavaBundle, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """An engine on the random assistant, with either decoder."""
    with Engine(
        assistant, replace(FEW, allow_fast_decoder=request.param == "allow_fast_decoder")
    ) as running:
        yield running


def build(engine: Engine, photos: Path, text: str, *images: int) -> Prompt:
    """Return a prompt about photos, given by number."""
    paths = [photos / f"{number}.png" for number in images]
    turn = Turn("user", (*(ImageRef(str(path)) for path in paths), text))
    processed = [engine.prepare_image(open_image(path)) for path in paths]
    return engine.build_prompt(Conversation("question", (turn,)), processed)


def prompts(engine: Engine, photos: Path) -> list[Prompt]:
    """Return prompts of different lengths with no image, one, two and three."""
    return [
        build(engine, photos, "what do you see? " * (first + 1), *range(first, first + count))
        for first, count in enumerate((0, 1, 2, 3, 1))
    ]


def tokens_of(stream: AnswerStream) -> tuple[int, ...]:
    """Return the tokens of an answer."""
    return tuple(token for piece in stream for token in piece.tokens)


def by_transformers(assistant: LlavaBundle, prompt: Prompt, tokens: int) -> tuple[int, ...]:
    """Return the greedy answer of transformers' own loop on the same embeddings."""
    pixels = [image.views for image in prompt.images]
    none = DecodedImages(assistant.processor)([])
    layouts = [image.layout for image in prompt.images]
    with torch.no_grad():
        embedded = assistant.model.embed(
            torch.tensor([prompt.ids]), torch.cat([none, *pixels]), layouts
        )
        language: Any = assistant.model.language
        ids = language.generate(
            inputs_embeds=embedded,
            attention_mask=torch.ones(embedded.shape[:2], dtype=torch.long),
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=assistant.tokenizer.eos_token_id,
            pad_token_id=0,
            suppress_tokens=[*range(len(assistant.tokenizer) - 2, 384)],
        )
    return tuple(token for token in ids[0].tolist() if token != assistant.tokenizer.eos_token_id)


def test_answers_equal_those_of_transformers(
    vision_folder: Path, language_folder: Path, engine: Engine, photos: Path
) -> None:
    """Five prompts share three slots and are prefilled in chunks of seven tokens."""
    reference = assemble(vision_folder, language_folder, seed=3)
    all_prompts = prompts(engine, photos)
    streams = [engine.submit(Request(prompt, GREEDY)) for prompt in all_prompts]
    answers = [tokens_of(stream) for stream in streams]
    assert answers == [by_transformers(reference, prompt, 23) for prompt in all_prompts]
    assert len(set(answers)) > 1
    assert [stream.finish_reason for stream in streams].count("length") > 0


def test_an_answer_depends_on_no_other_request(engine: Engine, photos: Path) -> None:
    """Sampled and greedy ones, with others that are cancelled, in two orders: each as it is alone."""
    requests = [
        Request(prompt, replace(sampling, seed=seed))
        for seed, prompt in enumerate(prompts(engine, photos))
        for sampling in (GREEDY, SAMPLED)
    ]
    alone = [tokens_of(engine.submit(request)) for request in requests]
    assert len(set(alone)) > 5
    rng = random.Random(7)
    for _ in range(2):
        order = rng.sample(range(len(requests)), len(requests))
        streams = {index: engine.submit(requests[index]) for index in order}
        for index in rng.sample(order, 3):
            cancelled = engine.submit(requests[index])
            next(iter(cancelled), None)
            cancelled.cancel()
        assert [tokens_of(streams[index]) for index in range(len(requests))] == alone


def test_cached_prefixes_change_no_token(
    vision_folder: Path, language_folder: Path, photos: Path
) -> None:
    """Conversations of three turns about the same and other images, with and without the prefix cache."""
    answers = []
    for cache_bytes in (0, 1 << 24):
        speaker = assemble(vision_folder, language_folder, seed=3)
        with Engine(speaker, replace(FEW, prefix_cache_bytes=cache_bytes)) as engine:
            results = []
            for first in (0, 1, 0):
                images = [engine.prepare_image(open_image(photos / f"{first}.png"))]
                turns: tuple[Turn, ...] = ()
                for number, text in enumerate(("what is it?", "what else?", "where?")):
                    parts = (ImageRef("p"), text) if number == 0 else (text,)
                    turns = (*turns, Turn("user", parts))
                    prompt = engine.build_prompt(Conversation("talk", turns), images)
                    stream = engine.submit(Request(prompt, GREEDY))
                    answer = stream.read_all()
                    turns = (*turns, Turn("assistant", (answer or "nothing",)))
                    results.append((answer, stream.usage.completion_tokens))
                    if cache_bytes and (number or len(results) > 6):
                        assert stream.usage.cached_tokens > 9  # at least the image
            answers.append(results)
            stats = engine.stats()
            assert (stats.cached_tokens > 0) == bool(cache_bytes)
            assert stats.cache_bytes <= cache_bytes
    assert answers[0] == answers[1]


def test_another_image_has_another_prefix(engine: Engine, photos: Path) -> None:
    """The same text about another image shares the tokens before it; about the same image, all but the last token."""
    prompt, other_prompt = (build(engine, photos, "what?", number) for number in (2, 3))
    first = engine.submit(Request(prompt, GREEDY))
    first.read_all()
    second = engine.submit(Request(other_prompt, GREEDY))
    second.read_all()
    again = engine.submit(Request(build(engine, photos, "what?", 2), GREEDY))
    assert (tokens_of(again), again.usage.cached_tokens) == (
        tokens_of(engine.submit(Request(prompt, GREEDY))),
        len(prompt.ids) - 1,
    )
    assert second.usage.cached_tokens == prompt.starts[0]
    assert prompt.ids == other_prompt.ids


def test_pieces_are_complete_and_do_not_repeat(engine: Engine, photos: Path) -> None:
    """They have all tokens in order, logprobs if requested, and no part of a stop."""
    prompt = prompts(engine, photos)[1]
    plain = engine.submit(Request(prompt, GREEDY))
    text = plain.read_all()
    assert plain.usage.completion_tokens <= 23
    stop = text[5:8]
    stopped = engine.submit(
        Request(prompt, replace(GREEDY, stop=("never", stop), logprobs=True, top_logprobs=3))
    )
    pieces = list(stopped)
    assert "".join(piece.text for piece in pieces) == text.split(stop)[0].rstrip()
    assert stopped.finish_reason == "stop"
    for piece in pieces:
        assert [logprob.token for logprob in piece.logprobs] == [*piece.tokens]
        for logprob in piece.logprobs:
            assert logprob.top_logprobs[0][0] == logprob.token  # it is greedy
            assert logprob.top_logprobs[0][2] == logprob.logprob <= 0
            assert len(logprob.top_logprobs) == 3


def test_a_sampled_answer_depends_on_its_seed(engine: Engine, photos: Path) -> None:
    """Several answers to one prompt differ by seed alone, and share its prefix."""
    prompt = prompts(engine, photos)[2]
    streams = [engine.submit(Request(prompt, replace(SAMPLED, seed=seed))) for seed in (1, 1, 2)]
    first, same_seed, other_seed = map(tokens_of, streams)
    assert first == same_seed != other_seed
    assert streams[1].usage.cached_tokens == len(prompt.ids) - 1


def test_a_cancelled_answer_ends_and_frees_its_slot(engine: Engine, photos: Path) -> None:
    """Running or waiting, it ends with the pieces so far, and requests behind it run."""
    prompt = prompts(engine, photos)[0]
    endless = SamplingParams(max_new_tokens=1500, temperature=5)
    running = [engine.submit(Request(prompt, replace(endless, seed=seed))) for seed in range(3)]
    waiting = engine.submit(Request(prompt, endless))
    behind = engine.submit(Request(prompt, GREEDY))
    for stream in running:
        next(iter(stream))
    waiting.cancel()
    running[1].cancel()
    assert behind.read_all()
    list(running[1])
    list(waiting)
    assert running[1].finish_reason == waiting.finish_reason == "cancelled"
    assert 0 < running[1].usage.completion_tokens < 1500
    for stream in running:
        stream.cancel()
        list(stream)
    assert engine.stats().running == 0


def test_a_partial_prefill_is_a_cached_prefix(engine: Engine, photos: Path) -> None:
    """Cancelled in prefill, at any chunk; the next request with the same prefix gets the same answer."""
    long = build(engine, photos, "what do you see? " * 30, 1, 2)
    alone = tokens_of(engine.submit(Request(build(engine, photos, "what? " * 30, 1, 2), GREEDY)))
    for _ in range(5):
        cancelled = engine.submit(Request(long, GREEDY))
        engine.submit(
            Request(build(engine, photos, "hm?"), SamplingParams(max_new_tokens=1))
        ).read_all()
        cancelled.cancel()
        list(cancelled)
        again = engine.submit(Request(build(engine, photos, "what? " * 30, 1, 2), GREEDY))
        assert tokens_of(again) == alone
    answer = tokens_of(engine.submit(Request(long, GREEDY)))
    same = build(engine, photos, "what do you see? " * 30, 1, 2)
    assert tokens_of(engine.submit(Request(same, GREEDY))) == answer


def test_a_full_queue_rejects_requests(assistant: LlavaBundle, photos: Path) -> None:
    """At once, with the number; with room in the queue, requests are accepted again."""
    with Engine(assistant, EngineConfig(slots=1, max_waiting=2)) as engine:
        prompt = build(engine, photos, "what?")
        endless = Request(prompt, SamplingParams(max_new_tokens=1500, temperature=5))
        running = engine.submit(endless)
        next(iter(running))
        waiting = [engine.submit(Request(prompt, GREEDY)) for _ in range(2)]
        with pytest.raises(QueueFullError, match="2 requests are waiting already"):
            engine.submit(Request(prompt, GREEDY))
        running.cancel()
        assert (
            waiting[0].read_all()
            == waiting[1].read_all()
            == engine.submit(Request(prompt, GREEDY)).read_all()
        )


def test_a_request_over_the_context_is_rejected(engine: Engine, photos: Path) -> None:
    """At once; the message has the three numbers."""
    prompt = prompts(engine, photos)[2]
    with pytest.raises(UsageError, match=rf"{len(prompt.ids)} tokens long .* up to 2999 .* 2048"):
        engine.submit(Request(prompt, SamplingParams(max_new_tokens=2999)))


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[Tensor], Tensor]], None]:
    """Return a function that makes the next steps of a slot fail, alone or with others."""

    def fail(slot: int, change: Callable[[Tensor], Tensor]) -> None:
        original = LlamaDecoder.decode

        def step(self: LlamaDecoder, slots: list[int], tokens: list[int]) -> Tensor:
            if slot in slots:
                change(torch.zeros(1))  # raises before the model runs
            logits = original(self, slots, tokens)
            if slot in slots:
                row = slots.index(slot)
                logits[row] = change(logits[row])
            return logits

        monkeypatch.setattr(LlamaDecoder, "decode", step)

    return fail


def test_nan_logits_fail_one_request(
    assistant: LlavaBundle, photos: Path, failing: Callable[[int, Callable[[Tensor], Tensor]], None]
) -> None:
    """The request of the row with NaN gets the error, the others their answers."""
    with Engine(assistant, FEW) as engine:
        requests = [Request(prompt, GREEDY) for prompt in prompts(engine, photos)[1:4]]
        expected = [tokens_of(engine.submit(request)) for request in requests]
        failing(1, lambda row: row * torch.nan)
        outcomes: list[tuple[int, ...] | str] = []
        for stream in [engine.submit(request) for request in requests]:
            try:
                outcomes.append(tokens_of(stream))
            except EngineError as error:
                outcomes.append(str(error))
        assert sum("NaN" in outcome for outcome in outcomes if isinstance(outcome, str)) == 1
        assert sum(map(operator.eq, outcomes, expected)) == 2
        assert engine.stats().failed == 1


def test_out_of_memory_fails_one_request(
    assistant: LlavaBundle, photos: Path, failing: Callable[[int, Callable[[Tensor], Tensor]], None]
) -> None:
    """A step that fails for several requests is run for each alone; only those fail that fail alone."""

    def out_of_memory(row: Tensor) -> Tensor:
        raise RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9e9 bytes."
        )

    with Engine(assistant, FEW) as engine:
        requests = [Request(prompt, GREEDY) for prompt in prompts(engine, photos)[1:4]]
        expected = [tokens_of(engine.submit(request)) for request in requests]
        failing(2, out_of_memory)
        outcomes: list[tuple[int, ...] | str] = []
        for stream in [engine.submit(request) for request in requests]:
            try:
                outcomes.append(tokens_of(stream))
            except EngineError as error:
                outcomes.append(str(error))
        assert (
            sum("not enough memory" in outcome for outcome in outcomes if isinstance(outcome, str))
            == 1
        )
        assert sum(map(operator.eq, outcomes, expected)) == 2


def test_closing_ends_running_and_waiting_requests(assistant: LlavaBundle, photos: Path) -> None:
    """With an error, and no more requests are accepted."""
    engine = Engine(assistant, EngineConfig(slots=1))
    prompt = build(engine, photos, "what?")
    endless = Request(prompt, SamplingParams(max_new_tokens=1500, temperature=5))
    running, waiting = engine.submit(endless), engine.submit(endless)
    next(iter(running))
    engine.close()
    for stream in (running, waiting):
        with pytest.raises(EngineError, match="the engine is closed"):
            list(stream)
    with pytest.raises(EngineError, match="the engine is closed"):
        engine.submit(endless)


def test_a_listener_is_called_at_every_change(engine: Engine, photos: Path) -> None:
    """On the engine's thread; pieces are drained without waiting."""
    end = threading.Event()
    pieces = []
    stream = engine.submit(Request(prompts(engine, photos)[0], GREEDY))

    def listen() -> None:
        ended = stream.ended
        pieces.extend(stream.drain())
        if ended:
            end.set()

    stream.on_update(listen)
    assert end.wait(60)
    text = "".join(piece.text for piece in pieces)
    assert text == engine.submit(stream.request).read_all()


def test_a_model_without_positions_has_no_limit(
    vision_folder: Path, tokenizer: PreTrainedTokenizerFast, photos: Path, tmp_path: Path
) -> None:
    """BLOOM's config has no context length; any max_new_tokens is accepted, with the decoder of transformers."""
    torch.manual_seed(6)
    config = BloomConfig(
        vocab_size=len(tokenizer),
        hidden_size=12,
        n_layer=2,
        n_head=2,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
    )
    BloomForCausalLM(config).save_pretrained(tmp_path / "bloom")
    tokenizer.save_pretrained(tmp_path / "bloom")
    speaker = assemble(vision_folder, tmp_path / "bloom", seed=3)
    assert speaker.model.context_length is None
    with Engine(speaker) as engine:
        assert engine.description == "transformers' BloomForCausalLM"
        stream = engine.submit(
            Request(build(engine, photos, "what?", 1), SamplingParams(max_new_tokens=999_999))
        )
        assert next(iter(stream)).tokens
        stream.cancel()


@pytest.mark.parametrize(
    "settings",
    [
        {"slots": 0},
        {"slots": "8"},
        {"max_waiting": -1},
        {"prefill_chunk_size": 0},
        {"prefix_cache_bytes": -1},
        {"quantization": "int4"},
    ],
)
def test_settings_out_of_range_are_rejected(settings: dict[str, object]) -> None:
    """The message names the setting, also for a value of another type or without such a quantization."""
    with pytest.raises(UsageError, match=next(iter(settings))):
        EngineConfig(**settings)  # type: ignore[arg-type] # numbers
