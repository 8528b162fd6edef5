"""Offline batches: each answer equals the answer alone and transformers' own, and nothing else runs beside a batch."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from caldera.batches.image_sources import DecodedImages
from caldera.conversation import Conversation, ImageRef, Turn
from caldera.devices import choose_device
from caldera.errors import EngineError, UsageError
from caldera.formats.assemble import assemble
from caldera.inference.decoder import TransformersDecoder
from caldera.inference.engine import Engine, EngineConfig, Request, offline_config
from caldera.inference.prompts import Prompt, PromptBuilder
from caldera.inference.sampling import SamplingParams
from caldera.model.bundle import LlavaBundle, eos_token_ids
from tests.engine_answers import GREEDY, generate, generate_ids
from tests.tiny_languages import LANGUAGES


def conversations() -> list[Conversation]:
    """Return questions of different lengths about no image, one, two and three."""
    questions = []
    for number, count in enumerate((0, 1, 2, 3, 1)):
        images = tuple(ImageRef(f"{index}.png") for index in range(number, number + count))
        text = "what do you see? " * (number + 1)
        questions.append(Conversation(str(number), (Turn("user", (*images, text)),)))
    return questions


def prompts(assistant: LlavaBundle, photos: Path) -> list[Prompt]:
    """Return the prompts of all conversations."""
    builder, images = PromptBuilder(assistant), DecodedImages(assistant.processor)
    return [
        builder.from_files(conversation, photos).load(images) for conversation in conversations()
    ]


def test_answers_do_not_depend_on_the_batch(assistant: LlavaBundle, photos: Path) -> None:
    """In fp32, with prompts of other lengths and images in the batch, and in any order."""
    questions = conversations()
    answers = generate(assistant, questions, photos)
    assert answers == [generate(assistant, [question], photos)[0] for question in questions]
    assert generate(assistant, questions[::-1], photos) == answers[::-1]
    assert len(set(answers)) > 1


def test_a_batch_gives_the_same_answers_every_time_in_bf16(
    assistant: LlavaBundle, photos: Path
) -> None:
    """What the engine answered before, alone or together, changes nothing."""
    requests = [Request(prompt, GREEDY) for prompt in prompts(assistant, photos)]

    def run(engine: Engine, batch: Sequence[Request]) -> list[str]:
        return [stream.read_all() for stream in engine.submit_batch(batch)]

    bf16 = choose_device("cpu", "bfloat16")
    with Engine(assistant, offline_config(5), compute=bf16) as engine:
        first = run(engine, requests)
        run(engine, requests[2:4])
        engine.submit(requests[1]).read_all()
        assert run(engine, requests) == first


@pytest.mark.parametrize("family", sorted(LANGUAGES))
def test_rows_that_end_do_not_change_the_others(family: str) -> None:
    """For every family: logits of a batch whose rows end one by one are those of each row alone."""
    from tests.inference.test_choose_decoder import random_language

    language = random_language(LANGUAGES[family])
    table = language.get_input_embeddings()
    prompt_ids = [[3, 4, 5], [6, 7, 8, 9, 10, 11, 12], [13]]
    expected: dict[int, list[Tensor]] = {}
    with torch.inference_mode():
        for slot, ids in enumerate(prompt_ids):
            decoder = TransformersDecoder(language)
            logits = [decoder.prefill(0, table(torch.tensor(ids)))]
            logits += [decoder.decode([0], [20 + slot + step])[0] for step in range(slot + 1)]
            expected[slot] = logits
        decoder = TransformersDecoder(language)
        slots = [0, 1, 2]
        embedded = [table(torch.tensor(ids)) for ids in prompt_ids]
        batch = [decoder.prefill_batch(slots, embedded)]
        for step in range(3):
            batch.append(decoder.decode(slots, [20 + slot + step for slot in slots]))
            decoder.reset(step)
            slots.remove(step)
    for step, rows in enumerate(batch):
        running = [slot for slot in range(3) if len(expected[slot]) > step]
        torch.testing.assert_close(
            rows, torch.stack([expected[slot][step] for slot in running]), rtol=1e-4, atol=1e-4
        )


def test_tokens_are_those_of_transformers(assistant: LlavaBundle, photos: Path) -> None:
    """Greedy answers of a batch equal `generate` of transformers on the same embeddings."""
    answers = generate_ids(assistant, conversations(), photos)
    language: Any = assistant.model.language
    eos = assistant.tokenizer.eos_token_id
    for prompt, answer in zip(prompts(assistant, photos), answers, strict=True):
        views = [image.views for image in prompt.images]
        pixels = torch.cat([DecodedImages(assistant.processor)([]), *views])
        layouts = [image.layout for image in prompt.images]
        with torch.no_grad():
            embedded = assistant.model.embed(torch.tensor([prompt.ids]), pixels, layouts)
            reference = language.generate(
                inputs_embeds=embedded,
                attention_mask=torch.ones(embedded.shape[:2], dtype=torch.long),
                max_new_tokens=23,
                do_sample=False,
                eos_token_id=eos,
                pad_token_id=0,
                suppress_tokens=[*range(len(assistant.tokenizer) - 2, 384)],
            )
        assert answer == tuple(token for token in reference[0].tolist() if token != eos)


def test_a_sampled_answer_depends_on_its_seed_alone(assistant: LlavaBundle, photos: Path) -> None:
    """The same seed samples the same answer, another seed another."""
    question = conversations()[1:2]
    answers = [
        generate(
            assistant,
            question,
            photos,
            SamplingParams(temperature=1.5, max_new_tokens=15, seed=seed),
        )
        for seed in (1, 1, 2)
    ]
    assert answers[0] == answers[1] != answers[2]


def with_answer_tokens(assistant: LlavaBundle, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Make every answer of the assistant spell `text`, token by token."""
    ids = assistant.tokenizer(text, add_special_tokens=False).input_ids
    forward, steps = TransformersDecoder._forward, iter(ids)

    def spell(self: TransformersDecoder, *inputs: Any, **options: Any) -> Tensor:  # noqa: ANN401
        logits = forward(self, *inputs, **options)
        logits[:] = 0
        logits[:, next(steps, assistant.tokenizer.eos_token_id)] = 1
        return logits

    monkeypatch.setattr(TransformersDecoder, "_forward", spell)


def test_the_stop_text_of_a_template_ends_the_answer(
    assistant: LlavaBundle, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of stage 1 has no end token; its caption ends at the newline, unless that is ignored."""
    card = assistant.card.model_copy(update={"template": "plain"})
    captioner = replace(assistant, card=card)
    image = Conversation("c", (Turn("user", (ImageRef("1.png"),)),))
    with_answer_tokens(assistant, monkeypatch, "a dog\nand more")
    assert generate(captioner, [image], photos) == ["a dog"]
    with_answer_tokens(assistant, monkeypatch, "a dog\nand")
    ignoring = SamplingParams(max_new_tokens=9, ignore_template_stop=True)
    assert generate(captioner, [image], photos, ignoring) == ["a dog\nand"]


def test_the_end_token_of_a_template_ends_the_answer(
    vision_folder: Path, language_folder: Path, photos: Path
) -> None:
    """It ends an answer as the tokenizer's own end token does."""
    speaker = assemble(vision_folder, language_folder, template="llama_3", seed=3)
    end = speaker.tokenizer.convert_tokens_to_ids("<|eot_id|>")
    assert eos_token_ids(speaker) == [speaker.tokenizer.eos_token_id, end]
    question = conversations()[1:2]
    [answer] = generate(speaker, question, photos)
    assert answer
    with torch.no_grad():  # the end token is now the most likely one everywhere
        speaker.model.language.get_output_embeddings().weight[:] *= 0.0
        hidden = speaker.model.language.model.norm.weight
        speaker.model.language.get_output_embeddings().weight[end] = torch.ones_like(hidden)
        speaker.model.language.model.norm.register_forward_hook(lambda *_: torch.ones_like(_[-1]))
    assert generate(speaker, question, photos) == [""]


def test_requests_wait_for_a_batch_and_a_batch_for_requests(
    assistant: LlavaBundle, photos: Path
) -> None:
    """All are answered, each as alone, whichever was submitted first."""
    alone = generate(assistant, conversations(), photos)
    requests = [Request(prompt, GREEDY) for prompt in prompts(assistant, photos)]
    config = EngineConfig(slots=3, prefill_chunk_size=7, prefix_cache_bytes=1 << 20)
    for allow_fast in (True, False):
        with Engine(assistant, replace(config, allow_fast_decoder=allow_fast)) as engine:
            streams = [engine.submit(requests[0]), *engine.submit_batch(requests[1:3])]
            streams += [engine.submit(requests[3]), *engine.submit_batch(requests[4:])]
            assert [stream.read_all() for stream in streams] == alone
            assert engine.submit_batch([]) == []
            assert engine.stats().running == engine.stats().waiting == 0


def test_what_does_not_fit_is_rejected(assistant: LlavaBundle, photos: Path) -> None:
    """A prompt with its longest answer must fit the context, and a batch the slots."""
    prompt = prompts(assistant, photos)[2]
    with Engine(assistant, offline_config(2)) as engine:
        too_long = Request(prompt, SamplingParams(max_new_tokens=2999))
        with pytest.raises(
            UsageError, match=rf"{len(prompt.ids)} tokens long .* up to 2999 .* for 2048"
        ):
            engine.submit_batch([too_long])
        with pytest.raises(UsageError, match="3 requests, but the engine has 2 slots"):
            engine.submit_batch([Request(prompt, GREEDY)] * 3)


def test_a_failed_step_fails_the_batch_and_no_other(
    assistant: LlavaBundle, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory in prefill or decoding: each request of the batch gets the error, the next batch is answered."""
    requests = [Request(prompt, GREEDY) for prompt in prompts(assistant, photos)[:2]]
    with Engine(assistant, offline_config(2)) as engine:
        expected = [stream.read_all() for stream in engine.submit_batch(requests)]
        for method in ("prefill_batch", "decode"):
            with monkeypatch.context() as patch:

                def fail(*_: object) -> Tensor:
                    raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

                patch.setattr(TransformersDecoder, method, fail)
                for stream in engine.submit_batch(requests):
                    with pytest.raises(EngineError, match="not enough memory"):
                        stream.read_all()
            assert [stream.read_all() for stream in engine.submit_batch(requests)] == expected


def test_images_of_a_batch_can_be_features(assistant: LlavaBundle, photos: Path) -> None:
    """Features of the vision tower, encoded before, give the same answers as pixels."""
    pixels = prompts(assistant, photos)
    with Engine(assistant, offline_config(5)) as engine:
        features = [
            replace(
                prompt,
                images=tuple(
                    replace(image, views=engine.encode_views(image.views))
                    for image in prompt.images
                ),
            )
            for prompt in pixels
        ]
        answers = [
            [
                stream.read_all()
                for stream in engine.submit_batch([Request(p, GREEDY) for p in kind])
            ]
            for kind in (pixels, features)
        ]
    assert answers[0] == answers[1]
