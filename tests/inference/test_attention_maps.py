"""Attention maps equal transformers' own attention weights, word by word and at the right image tokens."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from caldera.conversation import Conversation, ImageRef, Turn
from caldera.errors import UsageError
from caldera.images.decoding import open_image
from caldera.inference.attention_maps import attention_weights, compute_attention_maps, split_words
from caldera.inference.engine import Engine, EngineConfig, Request, SamplingParams
from caldera.inference.prompts import Prompt, PromptBuilder, process_image
from caldera.model.bundle import LlavaBundle


def answered(assistant: LlavaBundle, photos: Path, count: int, answer: str) -> tuple[Prompt, int]:
    """Return a conversation about some images with its answer."""
    paths = [photos / f"{number}.png" for number in range(count)]
    turn = Turn("user", (*(ImageRef(str(path)) for path in paths), "what do you see?"))
    images = [process_image(open_image(path), assistant.processor) for path in paths]
    return PromptBuilder(assistant).with_answer_and_images(
        Conversation("1", (turn,)), answer, images
    )


def by_transformers(assistant: LlavaBundle, prompt: Prompt) -> torch.Tensor:
    """Return the weights of one eager forward pass, averaged over layers and heads, (tokens, tokens)."""
    language: Any = assistant.model.language
    original = language.config._attn_implementation
    language.set_attn_implementation("eager")
    with torch.no_grad():
        embedded = assistant.model.embed(
            torch.tensor([prompt.ids]),
            torch.cat([image.views for image in prompt.images]),
            [image.layout for image in prompt.images],
        )
        attentions = language(inputs_embeds=embedded, output_attentions=True).attentions
    language.set_attn_implementation(original)
    return torch.stack(list(attentions)).mean(dim=(0, 1, 2))


def test_weights_equal_those_of_transformers(assistant: LlavaBundle, photos: Path) -> None:
    """Each answer token has the row of the position before it; the attention implementation is restored."""
    original = assistant.model.language.config._attn_implementation
    prompt, tokens = answered(assistant, photos, 2, "two dogs are on the meadow")
    weights = attention_weights(assistant, prompt, tokens)
    expected = by_transformers(assistant, prompt)
    assert tokens >= 6
    torch.testing.assert_close(weights, expected[-tokens - 1 : -1], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(tokens))
    assert assistant.model.language.config._attn_implementation == original


def test_words_have_the_mean_of_their_tokens(assistant: LlavaBundle, photos: Path) -> None:
    """For each image, over the columns of its own tokens."""
    prompt, tokens = answered(assistant, photos, 2, "two dogs zyx")
    weights = attention_weights(assistant, prompt, tokens)
    maps = compute_attention_maps(assistant, prompt, tokens)
    assert [word.text for word in maps.words] == [" two", " dogs", " zyx"]
    last = maps.words[-1]
    assert last.stop - last.start > 1
    mean = weights[last.start : last.stop].mean(dim=0)
    count = assistant.model.vision.tokens_per_view
    for image, start in zip(maps.images, prompt.starts, strict=True):
        torch.testing.assert_close(image.weights[-1], mean[start : start + count])
        assert 0 < image.attention_fraction < 1
        assert torch.allclose(image.heatmap((5, 7)).sum(dim=(1, 2)), image.weights.sum(dim=1))


@pytest.mark.parametrize(
    "answer", ["two dogs, one cat.", "两只狗在草地上", "a 🐕 on 🌱", "line\n\nline  end"]
)
def test_joined_words_are_the_answer(assistant: LlavaBundle, answer: str) -> None:
    """Characters of several tokens are neither lost nor repeated, and every token belongs to one word."""
    ids = tuple(assistant.tokenizer.encode(answer, add_special_tokens=False))
    words = split_words(ids, assistant.tokenizer)
    assert "".join(word.text for word in words) == assistant.tokenizer.decode(list(ids))
    assert words[0].start == 0
    assert words[-1].stop == len(ids)
    assert all(word.stop == after.start for word, after in pairwise(words))


def test_the_engine_computes_maps_between_steps(assistant: LlavaBundle, photos: Path) -> None:
    """The same weights while another answer is generated, which does not change."""
    prompt, tokens = answered(assistant, photos, 1, "two dogs")
    expected = compute_attention_maps(assistant, prompt, tokens)
    turn = Turn("user", (ImageRef(str(photos / "0.png")), "what do you see?"))
    conversation = Conversation("1", (turn,))
    images = [process_image(open_image(photos / "0.png"), assistant.processor)]
    with Engine(assistant, EngineConfig(slots=2, prefill_chunk_size=5)) as engine:
        request = Request(
            engine.build_prompt(conversation, images), SamplingParams(max_new_tokens=40)
        )
        alone = engine.submit(request).read_all()
        concurrent = engine.submit(request)
        maps = engine.attention_maps(conversation, "two dogs", images)
        assert concurrent.read_all() == alone
    torch.testing.assert_close(
        maps.images[0].weights, expected.images[0].weights, rtol=1e-4, atol=1e-6
    )


def test_a_conversation_that_is_too_long_is_rejected(assistant: LlavaBundle, photos: Path) -> None:
    """With its length, before anything is computed."""
    turn = Turn("user", ("dog " * 3000,))
    with Engine(assistant) as engine, pytest.raises(UsageError, match="tokens long"):
        engine.attention_maps(Conversation("1", (turn,)), "two dogs", [])


def test_an_error_of_a_queued_call_reaches_its_caller(assistant: LlavaBundle) -> None:
    """The engine continues."""

    def fail(_: LlavaBundle) -> None:
        raise UsageError("not this")

    with Engine(assistant) as engine:
        with pytest.raises(UsageError, match="not this"):
            engine.run_between_steps(fail)
        assert engine.run_between_steps(lambda bundle: bundle is assistant)


def test_a_prompt_has_the_positions_of_its_images(assistant: LlavaBundle, photos: Path) -> None:
    """Image tokens start at `starts`, also with an answer after them."""
    prompt, _ = answered(assistant, photos, 2, "two dogs")
    image, count = assistant.model.image_token_id, assistant.model.vision.tokens_per_view
    positions = [i for i, token in enumerate(prompt.ids) if token == image]
    assert positions == [i for start in prompt.starts for i in range(start, start + count)]
