"""Answers of the engine to conversations about image files, as one batch, for tests of other rooms."""

from collections.abc import Sequence
from pathlib import Path

from caldera.batches.image_sources import DecodedImages
from caldera.conversation import Conversation
from caldera.inference.engine import AnswerStream, Engine, Request, offline_config
from caldera.inference.prompts import PromptBuilder
from caldera.inference.sampling import SamplingParams
from caldera.model.bundle import LlavaBundle

GREEDY = SamplingParams(max_new_tokens=23)


def generate(
    assistant: LlavaBundle,
    conversations: Sequence[Conversation],
    folder: Path = Path(),
    sampling: SamplingParams = GREEDY,
) -> list[str]:
    """Return the answers of one batch."""
    return [stream.read_all() for stream in run_batch(assistant, conversations, folder, sampling)]


def generate_ids(
    assistant: LlavaBundle,
    conversations: Sequence[Conversation],
    folder: Path = Path(),
    sampling: SamplingParams = GREEDY,
) -> list[tuple[int, ...]]:
    """Return the tokens of the answers of one batch, without end tokens."""
    streams = run_batch(assistant, conversations, folder, sampling)
    return [tuple(token for piece in stream for token in piece.tokens) for stream in streams]


def run_batch(
    assistant: LlavaBundle,
    conversations: Sequence[Conversation],
    folder: Path,
    sampling: SamplingParams,
) -> list[AnswerStream]:
    """Return the finished streams of one batch."""
    builder, images = PromptBuilder(assistant), DecodedImages(assistant.processor)
    prompts = [builder.from_files(conversation, folder) for conversation in conversations]
    with Engine(assistant, offline_config(len(prompts))) as engine:
        streams = engine.submit_batch(
            [Request(prompt.load(images), sampling) for prompt in prompts]
        )
        for stream in streams:
            stream.wait()
    return streams
