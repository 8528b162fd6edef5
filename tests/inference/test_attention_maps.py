"""What an answer attended to is what transformers itself says, word by word and at the right place of an image."""

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
from caldera.model.assistant import LlavaBundle


def answered(assistant: LlavaBundle, photos: Path, count: int, answer: str) -> tuple[Prompt, int]:
    """Return a conversation about some images with its answer."""
    paths = [photos / f"{number}.png" for number in range(count)]
    turn = Turn("user", (*(ImageRef(str(path)) for path in paths), "what do you see?"))
    shown = [process_image(open_image(path), assistant.processor) for path in paths]
    return PromptBuilder(assistant).with_answer_and_images(
        Conversation("1", (turn,)), answer, shown
    )


def by_transformers(assistant: LlavaBundle, prompt: Prompt) -> torch.Tensor:
    """Return the weights that one whole eager forward gives, averaged over layers and heads, (tokens, tokens)."""
    language: Any = assistant.model.language
    usual = language.config._attn_implementation
    language.set_attn_implementation("eager")
    with torch.no_grad():
        embedded = assistant.model.embed(
            torch.tensor([prompt.ids]),
            torch.cat([image.views for image in prompt.images]),
            [image.layout for image in prompt.images],
        )
        told = language(inputs_embeds=embedded, output_attentions=True).attentions
    language.set_attn_implementation(usual)
    return torch.stack(list(told)).mean(dim=(0, 1, 2))


def test_the_weights_are_transformers_own(assistant: LlavaBundle, photos: Path) -> None:
    """Each answer token's row is that of the place where it was chosen; the way to attend is as before."""
    usual = assistant.model.language.config._attn_implementation
    prompt, tokens = answered(assistant, photos, 2, "two dogs are on the meadow")
    found = attention_weights(assistant, prompt, tokens)
    whole = by_transformers(assistant, prompt)
    assert tokens >= 6
    torch.testing.assert_close(found, whole[-tokens - 1 : -1], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(tokens))
    assert assistant.model.language.config._attn_implementation == usual


def test_words_take_the_mean_of_their_tokens(assistant: LlavaBundle, photos: Path) -> None:
    """Each image has the columns of its own image tokens."""
    prompt, tokens = answered(assistant, photos, 2, "two dogs zyx")
    weights = attention_weights(assistant, prompt, tokens)
    looks = compute_attention_maps(assistant, prompt, tokens)
    assert [word.text for word in looks.words] == [" two", " dogs", " zyx"]
    last = looks.words[-1]
    assert last.stop - last.start > 1
    mean = weights[last.start : last.stop].mean(dim=0)
    count = assistant.model.vision.tokens_per_view
    for image, start in zip(looks.images, prompt.starts, strict=True):
        torch.testing.assert_close(image.weights[-1], mean[start : start + count])
        assert 0 < image.attention_fraction < 1
        assert torch.allclose(image.heatmap((5, 7)).sum(dim=(1, 2)), image.weights.sum(dim=1))


@pytest.mark.parametrize(
    "answer", ["two dogs, one cat.", "两只狗在草地上", "a 🐕 on 🌱", "line\n\nline  end"]
)
def test_words_together_are_the_answer(assistant: LlavaBundle, answer: str) -> None:
    """Nothing is lost or doubled where letters take several tokens, and every token belongs to one word."""
    ids = tuple(assistant.tokenizer.encode(answer, add_special_tokens=False))
    words = split_words(ids, assistant.tokenizer)
    assert "".join(word.text for word in words) == assistant.tokenizer.decode(list(ids))
    assert words[0].start == 0
    assert words[-1].stop == len(ids)
    assert all(one.stop == other.start for one, other in pairwise(words))


def test_the_engine_looks_between_answers(assistant: LlavaBundle, photos: Path) -> None:
    """The same weights, asked while another answer is written, which stays as it is."""
    prompt, tokens = answered(assistant, photos, 1, "two dogs")
    expected = compute_attention_maps(assistant, prompt, tokens)
    turn = Turn("user", (ImageRef(str(photos / "0.png")), "what do you see?"))
    conversation = Conversation("1", (turn,))
    shown = [process_image(open_image(photos / "0.png"), assistant.processor)]
    with Engine(assistant, EngineConfig(slots=2, prefill_chunk_size=5)) as engine:
        request = Request(
            engine.build_prompt(conversation, shown), SamplingParams(max_new_tokens=40)
        )
        alone = engine.submit(request).read_all()
        beside = engine.submit(request)
        looks = engine.attention_maps(conversation, "two dogs", shown)
        assert beside.read_all() == alone
    torch.testing.assert_close(
        looks.images[0].weights, expected.images[0].weights, rtol=1e-4, atol=1e-6
    )


def test_what_is_too_long_is_refused(assistant: LlavaBundle, photos: Path) -> None:
    """With the numbers, before anything is computed."""
    turn = Turn("user", ("dog " * 3000,))
    with Engine(assistant) as engine, pytest.raises(UsageError, match="tokens long"):
        engine.attention_maps(Conversation("1", (turn,)), "two dogs", [])


def test_a_fault_of_the_work_reaches_who_asked(assistant: LlavaBundle) -> None:
    """And no other; the engine goes on."""

    def broken(given: LlavaBundle) -> None:
        raise UsageError("not this")

    with Engine(assistant) as engine:
        with pytest.raises(UsageError, match="not this"):
            engine.run_between_steps(broken)
        assert engine.run_between_steps(lambda given: given is assistant)


def test_a_prompt_knows_where_its_images_are(assistant: LlavaBundle, photos: Path) -> None:
    """Image tokens begin where it says, also with an answer behind them."""
    prompt, _ = answered(assistant, photos, 2, "two dogs")
    image, count = assistant.model.image_token_id, assistant.model.vision.tokens_per_view
    places = [at for at, token in enumerate(prompt.ids) if token == image]
    assert places == [at for start in prompt.starts for at in range(start, start + count)]
