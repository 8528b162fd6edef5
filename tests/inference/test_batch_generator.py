"""Answers: a batch gives what single runs give, the stream spells the answer, and transformers agrees."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from caldera.batches.image_sources import DecodedImages
from caldera.conversation import Conversation, ImageRef, Turn
from caldera.errors import UsageError
from caldera.formats.assemble import assemble
from caldera.inference.batch_generator import BatchGenerator
from caldera.inference.prompts import FilePrompt
from caldera.inference.sampling import SamplingParams, sample_tokens
from caldera.model.assistant import LlavaBundle, eos_token_ids

GREEDY = SamplingParams(max_new_tokens=23)


@pytest.fixture
def generator(assistant: LlavaBundle) -> BatchGenerator:
    """A generator on the random assistant."""
    return BatchGenerator(assistant, DecodedImages(assistant.processor))


def prompts(generator: BatchGenerator, photos: Path) -> list[FilePrompt]:
    """Return prompts of different lengths with no image, one, two and three."""
    asked = []
    for number, count in enumerate((0, 1, 2, 3, 1)):
        shown = tuple(ImageRef(f"{at}.png") for at in range(number, number + count))
        words = "what do you see? " * (number + 1)
        asked.append(Conversation(str(number), (Turn("user", (*shown, words)),)))
    return [generator.prompt(conversation, photos) for conversation in asked]


def test_a_batch_of_n_equals_n_single_runs(generator: BatchGenerator, photos: Path) -> None:
    """Prompts of other lengths and images beside it do not change an answer."""
    asked = prompts(generator, photos)

    together = generator.generate(asked, GREEDY)

    assert together == [generator.generate([prompt], GREEDY)[0] for prompt in asked]
    assert len(set(together)) > 1


def test_transformers_generate_gives_the_same_tokens(
    assistant: LlavaBundle, generator: BatchGenerator, photos: Path
) -> None:
    """Greedy answers equal those of transformers' own loop on the same embeddings."""
    for prompt in prompts(generator, photos):
        pixels = DecodedImages(assistant.processor)(prompt.images)
        with torch.no_grad():
            embedded = assistant.model.embed(torch.tensor([prompt.ids]), pixels, prompt.layouts)
            language: Any = assistant.model.language
            theirs = language.generate(
                inputs_embeds=embedded,
                attention_mask=torch.ones(embedded.shape[:2], dtype=torch.long),
                max_new_tokens=23,
                do_sample=False,
                eos_token_id=assistant.tokenizer.eos_token_id,
                pad_token_id=0,
                suppress_tokens=[*range(len(assistant.tokenizer) - 2, 384)],
            )
        text = str(assistant.tokenizer.decode(theirs[0], skip_special_tokens=True))
        assert generator.generate([prompt], GREEDY) == [text.strip()]


def test_sampling_depends_on_its_seed_alone(generator: BatchGenerator, photos: Path) -> None:
    """The same seed draws the same answer, another seed another."""
    prompt = prompts(generator, photos)[1]
    answers = [
        generator.generate([prompt], SamplingParams(temperature=1.5, max_new_tokens=15, seed=seed))
        for seed in (1, 1, 2)
    ]
    assert answers[0] == answers[1] != answers[2]


def test_the_stop_text_of_a_template_ends_the_answer(
    assistant: LlavaBundle, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of stage 1 knows no end mark; its caption ends at the newline."""
    card = assistant.card.model_copy(update={"template": "plain"})
    captioner = BatchGenerator(replace(assistant, card=card), DecodedImages(assistant.processor))
    prompt = captioner.prompt(Conversation("c", (Turn("user", (ImageRef("1.png"),)),)), photos)
    spelt = assistant.tokenizer("a dog\nand more", add_special_tokens=False).input_ids
    monkeypatch.setattr(captioner, "_generate_tokens", lambda *_: ([token] for token in spelt))

    assert captioner.generate([prompt], GREEDY) == ["a dog"]


def test_a_batch_ends_when_all_answers_reached_the_stop(
    assistant: LlavaBundle, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop that is text costs no more tokens than the longest answer has."""
    card = assistant.card.model_copy(update={"template": "v0"})
    talker = BatchGenerator(replace(assistant, card=card), DecodedImages(assistant.processor))
    prompt = talker.prompt(Conversation("c", (Turn("user", ("what?",)),)), photos)
    left = iter(assistant.tokenizer("a###b###", add_special_tokens=False).input_ids)
    monkeypatch.setattr(talker, "_generate_tokens", lambda *_: ([token, None] for token in left))

    assert talker.generate([prompt, prompt], GREEDY) == ["a", ""]
    assert assistant.tokenizer.decode(list(left)) == "b###"


def test_the_end_token_of_a_template_ends_the_answer(
    vision_folder: Path, language_folder: Path, photos: Path
) -> None:
    """It ends it as the tokenizer's own end mark does, and may be told apart from padding."""
    speaker = assemble(vision_folder, language_folder, template="llama_3", seed=3)
    end = speaker.tokenizer.convert_tokens_to_ids("<|eot_id|>")
    assert eos_token_ids(speaker) == [speaker.tokenizer.eos_token_id, end]
    generator = BatchGenerator(speaker, DecodedImages(speaker.processor))
    prompt = prompts(generator, photos)[1]
    [answer] = generator.generate([prompt], GREEDY)
    assert answer
    with torch.no_grad():  # the end token is now the likeliest everywhere
        speaker.model.language.get_output_embeddings().weight[:] *= 0.0
        hidden = speaker.model.language.model.norm.weight
        speaker.model.language.get_output_embeddings().weight[end] = torch.ones_like(hidden)
        speaker.model.language.model.norm.register_forward_hook(lambda *_: torch.ones_like(_[-1]))

    assert generator.generate([prompt], GREEDY) == [""]


def test_what_does_not_fit_is_refused(generator: BatchGenerator, photos: Path) -> None:
    """Nothing is cut in silence; the message holds the three numbers."""
    prompt = prompts(generator, photos)[2]
    with pytest.raises(
        UsageError, match=rf"{len(prompt.ids)} tokens long .* up to 2999 .* for 2048"
    ):
        generator.generate([prompt], SamplingParams(max_new_tokens=2999))


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -1},
        {"temperature": 99},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_k": -1},
        {"seed": -1},
        {"max_new_tokens": 0},
        {"stop": ("",)},
        {"logprobs": True, "top_logprobs": 21},
        {"top_logprobs": 2},
    ],
)
def test_settings_out_of_range_are_refused(bad: dict[str, float]) -> None:
    """The message names the setting and its range."""
    with pytest.raises(UsageError, match=list(bad)[-1]):
        SamplingParams(**bad)  # type: ignore[arg-type]


def test_top_p_keeps_the_likeliest() -> None:
    """With a small top_p only the likeliest token is ever drawn; with all of it the others are, too."""
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2]])).repeat(500, 1)
    generator = torch.Generator().manual_seed(0)
    assert set(
        sample_tokens(logits, SamplingParams(temperature=1, top_p=0.4), generator).tolist()
    ) == {0}
    assert set(
        sample_tokens(logits, SamplingParams(temperature=1, top_p=0.6), generator).tolist()
    ) == {0, 1}
    drawn = sample_tokens(logits, SamplingParams(temperature=1), generator).bincount() / 500
    assert drawn.tolist() == pytest.approx([0.5, 0.3, 0.2], abs=0.07)


def test_top_k_keeps_so_many() -> None:
    """No more tokens than that are ever drawn, by their chances among themselves; top_p counts among them."""
    logits = torch.log(torch.tensor([[0.1, 0.5, 0.3, 0.1]])).repeat(500, 1)
    generator = torch.Generator().manual_seed(0)
    drawn = (
        sample_tokens(logits, SamplingParams(temperature=1, top_k=2), generator).bincount(
            minlength=4
        )
        / 500
    )
    assert drawn.tolist() == pytest.approx([0, 0.625, 0.375, 0], abs=0.07)
    narrow = SamplingParams(temperature=1, top_k=2, top_p=0.6)
    assert set(sample_tokens(logits, narrow, generator).tolist()) == {1}
