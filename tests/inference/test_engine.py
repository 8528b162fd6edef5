"""The engine's answers are transformers' own, whatever runs beside them, and each request fails or ends alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from caldera.batches.picture_files import open_picture
from caldera.batches.picture_sources import Pixels
from caldera.conversation import Conversation, Picture, Turn
from caldera.inference.engine import Answering, Engine, EngineSettings, Request, Sampling
from caldera.inference.prompts import Prompt
from caldera.model.folder import Assistant

GREEDY = Sampling(max_new_tokens=23)


@pytest.fixture
def engine(assistant: Assistant) -> Iterator[Engine]:
    """An engine on the random assistant."""
    with Engine(assistant, EngineSettings(slots=3, chunk=7)) as running:
        yield running


def prompts(engine: Engine, photos: Path) -> list[Prompt]:
    """Return prompts of different lengths with no picture, one, two and three."""
    asked = []
    for number, count in enumerate((0, 1, 2, 3, 1)):
        paths = [photos / f"{at}.png" for at in range(number, number + count)]
        words = "what do you see? " * (number + 1)
        turn = Turn("user", (*(Picture(str(path)) for path in paths), words))
        shown = [engine.picture(open_picture(path)) for path in paths]
        asked.append(engine.prompt(Conversation(str(number), (turn,)), shown))
    return asked


def told(answering: Answering) -> tuple[int, ...]:
    """Return the tokens of an answer."""
    return tuple(token for piece in answering for token in piece.tokens)


def by_transformers(assistant: Assistant, prompt: Prompt, tokens: int) -> tuple[int, ...]:
    """Return the greedy answer of transformers' own loop on the same embeddings."""
    pixels = [picture.pixels for picture in prompt.pictures]
    none = Pixels(assistant.processor)([])
    layouts = [picture.layout for picture in prompt.pictures]
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
    assistant: Assistant, engine: Engine, photos: Path
) -> None:
    """Five prompts share three slots, are read in chunks of seven tokens, and give transformers' tokens."""
    asked = prompts(engine, photos)
    running = [engine.submit(Request(prompt, GREEDY)) for prompt in asked]
    answers = [told(one) for one in running]
    assert answers == [by_transformers(assistant, prompt, 23) for prompt in asked]
    assert len(set(answers)) > 1
    assert [one.finish_reason for one in running].count("length") > 0
