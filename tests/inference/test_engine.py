"""The engine's answers are transformers' own, whatever runs beside them, and each request fails or ends alone."""

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
from caldera.model.assistant import LlavaBundle

GREEDY = SamplingParams(max_new_tokens=23)
DRAWN = SamplingParams(max_new_tokens=23, temperature=1.3, top_p=0.9, top_k=50)
FEW = EngineConfig(slots=3, prefill_chunk_size=7)
"""Few slots and small chunks: requests wait, join and leave, and prompts are read in parts."""


@pytest.fixture(params=["allow_fast_decoder", "transformers"])
def engine(assistant: LlavaBundle, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """An engine on the random assistant, by either decoder."""
    with Engine(
        assistant, replace(FEW, allow_fast_decoder=request.param == "allow_fast_decoder")
    ) as running:
        yield running


def ask(engine: Engine, photos: Path, words: str, *images: int) -> Prompt:
    """Return a prompt about photos by their numbers."""
    paths = [photos / f"{number}.png" for number in images]
    turn = Turn("user", (*(ImageRef(str(path)) for path in paths), words))
    shown = [engine.prepare_image(open_image(path)) for path in paths]
    return engine.build_prompt(Conversation("asked", (turn,)), shown)


def prompts(engine: Engine, photos: Path) -> list[Prompt]:
    """Return prompts of different lengths with no image, one, two and three."""
    return [
        ask(engine, photos, "what do you see? " * (at + 1), *range(at, at + count))
        for at, count in enumerate((0, 1, 2, 3, 1))
    ]


def told(answering: AnswerStream) -> tuple[int, ...]:
    """Return the tokens of an answer."""
    return tuple(token for piece in answering for token in piece.tokens)


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


def test_answers_are_those_of_transformers_whatever_runs_beside_them(
    vision_folder: Path, language_folder: Path, engine: Engine, photos: Path
) -> None:
    """Five prompts share three slots, are read in chunks of seven tokens, and give transformers' tokens."""
    alone = assemble(vision_folder, language_folder, seed=3)
    asked = prompts(engine, photos)
    running = [engine.submit(Request(prompt, GREEDY)) for prompt in asked]
    answers = [told(one) for one in running]
    assert answers == [by_transformers(alone, prompt, 23) for prompt in asked]
    assert len(set(answers)) > 1
    assert [one.finish_reason for one in running].count("length") > 0


def test_an_answer_depends_on_no_other_request(engine: Engine, photos: Path) -> None:
    """Drawn and greedy ones, beside others that are cancelled, in two orders: each as it is alone."""
    asked = [
        Request(prompt, replace(sampling, seed=seed))
        for seed, prompt in enumerate(prompts(engine, photos))
        for sampling in (GREEDY, DRAWN)
    ]
    alone = [told(engine.submit(one)) for one in asked]
    assert len(set(alone)) > 5
    rng = random.Random(7)
    for _ in range(2):
        order = rng.sample(range(len(asked)), len(asked))
        running = {at: engine.submit(asked[at]) for at in order}
        for at in rng.sample(order, 3):
            stopped = engine.submit(asked[at])
            next(iter(stopped), None)
            stopped.cancel()
        assert [told(running[at]) for at in range(len(asked))] == alone


def test_kept_prefixes_change_no_token(
    vision_folder: Path, language_folder: Path, photos: Path
) -> None:
    """Talks of three turns about the same and other images: with and without what was kept, and it was used."""
    answers = []
    for kept in (0, 1 << 24):
        speaker = assemble(vision_folder, language_folder, seed=3)
        with Engine(speaker, replace(FEW, prefix_cache_bytes=kept)) as engine:
            heard = []
            for first in (0, 1, 0):
                shown = [engine.prepare_image(open_image(photos / f"{first}.png"))]
                turns: tuple[Turn, ...] = ()
                for number, words in enumerate(("what is it?", "what else?", "where?")):
                    parts = (ImageRef("p"), words) if number == 0 else (words,)
                    turns = (*turns, Turn("user", parts))
                    prompt = engine.build_prompt(Conversation("talk", turns), shown)
                    answering = engine.submit(Request(prompt, GREEDY))
                    text = answering.read_all()
                    turns = (*turns, Turn("assistant", (text or "nothing",)))
                    heard.append((text, answering.usage.completion_tokens))
                    if kept and (number or len(heard) > 6):
                        assert answering.usage.cached_tokens > 9  # at least the image
            answers.append(heard)
            stats = engine.stats()
            assert (stats.cached_tokens > 0) == bool(kept)
            assert stats.cache_bytes <= kept
    assert answers[0] == answers[1]


def test_another_image_is_never_taken_for_a_kept_one(engine: Engine, photos: Path) -> None:
    """The same words about another image share what stands before it; about the same, all but the last token."""
    one, other = (ask(engine, photos, "what?", number) for number in (2, 3))
    first = engine.submit(Request(one, GREEDY))
    first.read_all()
    second = engine.submit(Request(other, GREEDY))
    second.read_all()
    again = engine.submit(Request(ask(engine, photos, "what?", 2), GREEDY))
    assert (told(again), again.usage.cached_tokens) == (
        told(engine.submit(Request(one, GREEDY))),
        len(one.ids) - 1,
    )
    assert second.usage.cached_tokens == one.starts[0]
    assert one.ids == other.ids


def test_the_text_is_told_once_and_whole(engine: Engine, photos: Path) -> None:
    """Pieces hold all tokens in order, their logprobs when asked for, and no part of a stop."""
    prompt = prompts(engine, photos)[1]
    plain = engine.submit(Request(prompt, GREEDY))
    whole = plain.read_all()
    assert plain.usage.completion_tokens <= 23
    stop = whole[5:8]
    stopped = engine.submit(
        Request(prompt, replace(GREEDY, stop=("never", stop), logprobs=True, top_logprobs=3))
    )
    pieces = list(stopped)
    assert "".join(piece.text for piece in pieces) == whole.split(stop)[0].rstrip()
    assert stopped.finish_reason == "stop"
    for piece in pieces:
        assert [chance.token for chance in piece.logprobs] == [*piece.tokens]
        for chance in piece.logprobs:
            assert chance.top_logprobs[0][0] == chance.token  # it is greedy
            assert chance.top_logprobs[0][2] == chance.logprob <= 0
            assert len(chance.top_logprobs) == 3


def test_seeds_decide_what_is_drawn(engine: Engine, photos: Path) -> None:
    """Several answers to one prompt differ by seed alone, and share its prefix."""
    prompt = prompts(engine, photos)[2]
    running = [engine.submit(Request(prompt, replace(DRAWN, seed=seed))) for seed in (1, 1, 2)]
    one, same, other = (told(each) for each in running)
    assert one == same != other
    assert running[1].usage.cached_tokens == len(prompt.ids) - 1


def test_a_cancelled_answer_ends_and_frees_its_slot(engine: Engine, photos: Path) -> None:
    """Running or waiting, it ends with what was told, and those behind it go on."""
    prompt = prompts(engine, photos)[0]
    endless = SamplingParams(max_new_tokens=1500, temperature=5)
    running = [engine.submit(Request(prompt, replace(endless, seed=at))) for at in range(3)]
    waiting = engine.submit(Request(prompt, endless))
    behind = engine.submit(Request(prompt, GREEDY))
    for each in running:
        next(iter(each))
    waiting.cancel()
    running[1].cancel()
    assert behind.read_all()
    list(running[1])
    list(waiting)
    assert running[1].finish_reason == waiting.finish_reason == "cancelled"
    assert 0 < running[1].usage.completion_tokens < 1500
    for each in running:
        each.cancel()
        list(each)
    assert engine.stats().running == 0


def test_a_prompt_that_was_read_in_part_is_kept_in_part(engine: Engine, photos: Path) -> None:
    """Cancelled while it is read, at any chunk; the next request with its start answers as ever."""
    long = ask(engine, photos, "what do you see? " * 30, 1, 2)
    alone = told(engine.submit(Request(ask(engine, photos, "what? " * 30, 1, 2), GREEDY)))
    for _ in range(5):
        stopped = engine.submit(Request(long, GREEDY))
        engine.submit(
            Request(ask(engine, photos, "hm?"), SamplingParams(max_new_tokens=1))
        ).read_all()
        stopped.cancel()
        list(stopped)
        again = engine.submit(Request(ask(engine, photos, "what? " * 30, 1, 2), GREEDY))
        assert told(again) == alone
    whole = told(engine.submit(Request(long, GREEDY)))
    with_none = ask(engine, photos, "what do you see? " * 30, 1, 2)
    assert told(engine.submit(Request(with_none, GREEDY))) == whole


def test_more_than_may_wait_is_refused(assistant: LlavaBundle, photos: Path) -> None:
    """At once, with the number; when there is room again, requests are taken again."""
    with Engine(assistant, EngineConfig(slots=1, max_waiting=2)) as engine:
        prompt = ask(engine, photos, "what?")
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


def test_what_does_not_fit_is_refused_at_once(engine: Engine, photos: Path) -> None:
    """The message holds the three numbers."""
    prompt = prompts(engine, photos)[2]
    with pytest.raises(UsageError, match=rf"{len(prompt.ids)} tokens long .* up to 2999 .* 2048"):
        engine.submit(Request(prompt, SamplingParams(max_new_tokens=2999)))


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[Tensor], Tensor]], None]:
    """A way to have a slot's next steps fail, alone or with others."""

    def fail(bad: int, change: Callable[[Tensor], Tensor]) -> None:
        sound = LlamaDecoder.decode

        def step(self: LlamaDecoder, slots: list[int], tokens: list[int]) -> Tensor:
            if bad in slots:
                change(torch.zeros(1))  # what raises does so before anything is read
            logits = sound(self, slots, tokens)
            if bad in slots:
                row = slots.index(bad)
                logits[row] = change(logits[row])
            return logits

        monkeypatch.setattr(LlamaDecoder, "decode", step)

    return fail


def test_numbers_that_are_none_fail_one_request(
    assistant: LlavaBundle, photos: Path, failing: Callable[[int, Callable[[Tensor], Tensor]], None]
) -> None:
    """NaN in one row: its request says so, those beside it answer as ever."""
    with Engine(assistant, FEW) as engine:
        asked = [Request(prompt, GREEDY) for prompt in prompts(engine, photos)[1:4]]
        sound = [told(engine.submit(one)) for one in asked]
        failing(1, lambda row: row * torch.nan)
        outcomes: list[tuple[int, ...] | str] = []
        for one in [engine.submit(one) for one in asked]:
            try:
                outcomes.append(told(one))
            except EngineError as error:
                outcomes.append(str(error))
        assert sum(isinstance(one, str) and "NaN" in one for one in outcomes) == 1
        assert sum(one == right for one, right in zip(outcomes, sound, strict=True)) == 2
        assert engine.stats().failed == 1


def test_a_lack_of_memory_fails_one_request(
    assistant: LlavaBundle, photos: Path, failing: Callable[[int, Callable[[Tensor], Tensor]], None]
) -> None:
    """A step that cannot be done together is done one by one; only what cannot be done alone fails."""

    def too_much(row: Tensor) -> Tensor:
        raise RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9e9 bytes."
        )

    with Engine(assistant, FEW) as engine:
        asked = [Request(prompt, GREEDY) for prompt in prompts(engine, photos)[1:4]]
        sound = [told(engine.submit(one)) for one in asked]
        failing(2, too_much)
        outcomes: list[tuple[int, ...] | str] = []
        for one in [engine.submit(one) for one in asked]:
            try:
                outcomes.append(told(one))
            except EngineError as error:
                outcomes.append(str(error))
        assert sum("not enough memory" in one for one in outcomes if isinstance(one, str)) == 1
        assert sum(one == right for one, right in zip(outcomes, sound, strict=True)) == 2


def test_closing_ends_what_runs_and_what_waits(assistant: LlavaBundle, photos: Path) -> None:
    """Both hear of it, and nothing more is taken."""
    engine = Engine(assistant, EngineConfig(slots=1))
    prompt = ask(engine, photos, "what?")
    endless = Request(prompt, SamplingParams(max_new_tokens=1500, temperature=5))
    running, waiting = engine.submit(endless), engine.submit(endless)
    next(iter(running))
    engine.close()
    for each in (running, waiting):
        with pytest.raises(EngineError, match="the engine is closed"):
            list(each)
    with pytest.raises(EngineError, match="the engine is closed"):
        engine.submit(endless)


def test_a_listener_hears_of_every_change(engine: Engine, photos: Path) -> None:
    """What is ready is taken without waiting, from the thread that was called."""
    done = threading.Event()
    pieces = []
    answering = engine.submit(Request(prompts(engine, photos)[0], GREEDY))

    def hear() -> None:
        ended = answering.ended
        pieces.extend(answering.drain())
        if ended:
            done.set()

    answering.on_update(hear)
    assert done.wait(60)
    text = "".join(piece.text for piece in pieces)
    assert text == engine.submit(answering.request).read_all()


def test_a_model_without_positions_has_no_limit(
    vision_folder: Path, tokenizer: PreTrainedTokenizerFast, photos: Path, tmp_path: Path
) -> None:
    """BLOOM's config states no context; it answers by transformers' own decoder, however much is asked for."""
    torch.manual_seed(6)
    shape = BloomConfig(
        vocab_size=len(tokenizer), hidden_size=12, n_layer=2, n_head=2, initializer_range=0.3, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    BloomForCausalLM(shape).save_pretrained(tmp_path / "bloom")
    tokenizer.save_pretrained(tmp_path / "bloom")
    speaker = assemble(vision_folder, tmp_path / "bloom", seed=3)
    assert speaker.model.context_length is None
    with Engine(speaker) as engine:
        assert engine.description == "transformers' BloomForCausalLM"
        answering = engine.submit(
            Request(ask(engine, photos, "what?", 1), SamplingParams(max_new_tokens=999_999))
        )
        assert next(iter(answering)).tokens
        answering.cancel()


@pytest.mark.parametrize(
    "bad",
    [{"slots": 0}, {"max_waiting": -1}, {"prefill_chunk_size": 0}, {"prefix_cache_bytes": -1}],
)
def test_settings_out_of_range_are_refused(bad: dict[str, int]) -> None:
    """The message names the setting."""
    with pytest.raises(UsageError, match=next(iter(bad))):
        EngineConfig(**bad)  # type: ignore[arg-type] # numbers
