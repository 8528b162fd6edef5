"""Answers of a model folder: batches, single failures, and options scored by likelihood."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from caldera.batches.image_sources import DecodedImages
from caldera.conversation import Conversation, Turn
from caldera.devices import Runtime, choose_device
from caldera.errors import UsageError
from caldera.evaluation.answerers import local_model
from caldera.evaluation.answerers.answerer import Answer, AnswerConfig, ChoiceMethod, PreparedItem
from caldera.evaluation.answerers.local_model import (
    ImageFeatureCache,
    LocalModelAnswerer,
    digest_model_folder,
    generate_answers,
    split_by_images,
)
from caldera.evaluation.benchmark import Item
from caldera.formats.model_folder import save_model_folder
from caldera.inference.engine import Engine, offline_config
from caldera.inference.prompts import PromptBuilder
from caldera.inference.sampling import SamplingParams
from caldera.model.bundle import LlavaBundle
from caldera.progress import NoProgress
from caldera.scenes.backbones import FORMER_DIGESTS
from tests.engine_answers import generate
from tests.evaluation.questions import question, questions

DEFAULTS = AnswerConfig()
FP32 = choose_device("cpu", "float32")


def ask(
    assistant: LlavaBundle,
    items: Sequence[Item],
    photos: Path,
    config: AnswerConfig = DEFAULTS,
    answered: Collection[str] = (),
    dtype: torch.dtype = torch.float32,
    max_new_tokens: int = 4,
) -> dict[str, Answer]:
    """Return a random assistant's answers by item id."""
    answers: dict[str, Answer] = {}
    compute = replace(FP32, dtype=dtype)
    answerer = LocalModelAnswerer(assistant, "digest", config=config, compute=compute)
    answerer.ask(
        [answerer.prepare(item, photos, ()) for item in items],
        answered,
        lambda batch: answers.update({answer.id: answer for answer in batch}),
        max_new_tokens=max_new_tokens,
    )
    return answers


def test_photos_are_warned_of_where_the_model_saw_drawings_only(
    assistant: LlavaBundle, photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As in training and chat, once; a model of other towers is silent."""
    items = [question(0), question(1)]
    for digest, expected in (("another", 0), (next(iter(FORMER_DIGESTS)), 1)):
        card = assistant.card.model_copy(update={"source_digests": {"vision": digest}})
        ask(replace(assistant, card=card), items, photos)
        assert len([text for text in caplog.messages if "2 of 2 images" in text]) == expected


def test_answers_do_not_depend_on_the_batch(assistant: LlavaBundle, photos: Path) -> None:
    """In fp32 each item, with or without images, gets the answer that it gets alone."""
    items = questions(9).items
    answers = ask(assistant, items, photos, AnswerConfig(batch_size=4))
    for item in items:
        sampling = SamplingParams(max_new_tokens=4)
        [alone] = generate(assistant, [item.conversation], photos, sampling)
        assert answers[item.id] == Answer(item.id, alone)
    assert len({answer.text for answer in answers.values()}) > 1, "equal ones prove nothing"
    runtime = Runtime(FP32, NoProgress())
    images = DecodedImages(assistant.processor)
    assert generate_answers(
        assistant, items, images, folder=photos, max_new_tokens=4, runtime=runtime, name="all"
    ) == {item.id: answers[item.id].text for item in items}


def test_resumed_batches_give_the_same_answers_in_bf16(
    assistant: LlavaBundle, photos: Path
) -> None:
    """Whichever whole batches are answered already, the others are those of an uninterrupted run."""
    items = questions(23).items
    config = AnswerConfig(batch_size=4)
    all_answers = ask(assistant, items, photos, config, dtype=torch.bfloat16)
    ids = list(all_answers)  # in the order of the batches
    for num_answered in (4, 16):
        answered = ids[:num_answered]
        resumed = ask(assistant, items, photos, config, answered, torch.bfloat16)
        assert resumed == {item_id: all_answers[item_id] for item_id in ids[num_answered:]}


def test_each_prompt_is_tokenized_once(
    assistant: LlavaBundle, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the cache key to the engine, an item's conversation is rendered by one call."""
    rendered: list[str] = []
    from_files = PromptBuilder.from_files

    def count(self: PromptBuilder, conversation: Conversation, folder: Path) -> object:
        rendered.append(conversation.id)
        return from_files(self, conversation, folder)

    monkeypatch.setattr(PromptBuilder, "from_files", count)
    items = questions(9).items
    ask(assistant, items, photos)
    assert rendered == [item.conversation.id for item in items]


def test_each_image_is_encoded_once(assistant: LlavaBundle, photos: Path) -> None:
    """However many questions and batches there are, and one image at a time."""
    num_views: list[int] = []
    assistant.model.vision.register_forward_pre_hook(
        lambda _, inputs: num_views.append(len(inputs[0]))
    )
    items = questions(23).items
    images = {path for item in items for path in item.conversation.images}
    ask(assistant, items, photos, AnswerConfig(batch_size=4))
    assert num_views == [1] * len(images)


def test_little_memory_changes_no_answer(
    assistant: LlavaBundle, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With memory for the features of two images, each is still encoded once, and the answers are the same."""
    items = questions(23).items
    answers = ask(assistant, items, photos, AnswerConfig(batch_size=4))
    bytes_per_image = 9 * 10 * 4  # patches, width, bytes of a value
    monkeypatch.setattr(local_model, "MAX_BYTES", 2 * bytes_per_image + 1)
    with Engine(assistant, offline_config(1)) as engine:
        assert ImageFeatureCache(assistant, engine).capacity == 2
    num_views: list[int] = []
    assistant.model.vision.register_forward_pre_hook(
        lambda _, inputs: num_views.append(len(inputs[0]))
    )
    assert ask(assistant, items, photos, AnswerConfig(batch_size=4)) == answers
    assert len(num_views) == 7


def test_items_about_an_image_are_in_one_block() -> None:
    """23 items about seven images: two images a block, every item once, in order; one block if all fit."""
    items = [PreparedItem(item, Path(), "") for item in questions(23).items]
    assert list(split_by_images(items, 7)) == [items]
    blocks = list(split_by_images(items, 2))
    images = [
        {path for prepared in block for path in prepared.item.conversation.images}
        for block in blocks
    ]
    assert [len(paths) for paths in images] == [2, 2, 2, 1]
    assert sum(map(len, images)) == 7, "no image is in two blocks"
    assert all(block == sorted(block, key=items.index) for block in blocks)
    ids = sorted(prepared.item.id for block in blocks for prepared in block)
    assert ids == sorted(prepared.item.id for prepared in items)
    assert list(split_by_images((), 2)) == []


def test_only_items_that_cannot_be_asked_fail(assistant: LlavaBundle, photos: Path) -> None:
    """A broken image and a question that is too long fail with their reasons; the rest of the batch is answered."""
    (photos / "1.png").write_bytes(b"no image")
    items = [*questions(6).items, question(6, tail=" what" * 3000)]
    answers = ask(assistant, items, photos)
    failed = {item_id: answer.error for item_id, answer in answers.items() if answer.error}
    assert failed.keys() == {"q1", "q6"}
    assert "1.png is a text file, not an image" in failed["q1"]
    assert "room for 2048" in failed["q6"]
    assert len(answers) == 7


def test_an_answer_ends_with_the_context(
    assistant: LlavaBundle, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A maximum beyond the model's room fails no item: the longest prompt has the answer of nine tokens, its room."""
    items = questions(3).items
    builder = PromptBuilder(assistant)
    lengths = {item.id: len(builder.from_files(item.conversation, photos).ids) for item in items}
    longest = max(lengths, key=lambda name: lengths[name])
    expected = ask(assistant, items, photos, max_new_tokens=9)
    config = assistant.model.language.config
    monkeypatch.setattr(config, "max_position_embeddings", lengths[longest] + 9)
    answers = ask(assistant, items, photos, max_new_tokens=1024)
    assert not any(answer.error for answer in answers.values())
    assert answers[longest] == expected[longest]
    for name in lengths.keys() - {longest}:
        assert answers[name].text.startswith(expected[name].text)


@pytest.mark.parametrize("method", ["letter", "option", "option-mean"])
def test_the_most_likely_option_is_chosen(
    assistant: LlavaBundle, photos: Path, method: ChoiceMethod
) -> None:
    """An option's log likelihood is the sum over its tokens, each given all before it."""
    options = ("cat", "the dog in the image", "bird is on the meadow")
    items = questions(4, choices=options).items
    answers = ask(assistant, items, photos, AnswerConfig(choice_method=method))
    texts = ("A", "B", "C") if method == "letter" else options
    for item in items:
        expected = [token_logprobs(assistant, item, text, photos) for text in texts]
        totals, lengths = zip(*answers[item.id].option_log_likelihoods, strict=True)
        assert list(lengths) == [len(logprobs) for logprobs in expected]
        assert list(totals) == pytest.approx([sum(logprobs) for logprobs in expected], abs=1e-4)
        scores = [
            sum(logprobs) / (len(logprobs) if method == "option-mean" else 1)
            for logprobs in expected
        ]
        assert answers[item.id].text == "ABC"[scores.index(max(scores))]


def token_logprobs(assistant: LlavaBundle, item: Item, option: str, photos: Path) -> list[float]:
    """Return the log probability of each token of an option, by one forward pass per token."""
    builder = PromptBuilder(assistant)
    prompt = builder.from_files(item.conversation, photos)
    turns = (*item.conversation.turns, Turn("assistant", (option,)), Turn("user", ("?",)))
    ids = builder.from_files(Conversation("x", turns), photos).ids
    end = ids.index(assistant.tokenizer.eos_token_id, len(prompt.ids))
    pixels = DecodedImages(assistant.processor)(prompt.images)
    logprobs = []
    for position in range(len(prompt.ids), end):
        with torch.inference_mode():
            prefix = torch.tensor([ids[:position]])
            embedded = assistant.model.embed(prefix, pixels, prompt.layouts)
            logits = assistant.model.language(inputs_embeds=embedded).logits[0, -1]
        logprobs.append(float(logits.float().log_softmax(-1)[ids[position]]))
    return logprobs


def test_the_identity_covers_what_answers_depend_on(assistant: LlavaBundle, tmp_path: Path) -> None:
    """Another folder, precision, decoding or batch size is another identity; other settings change nothing."""
    save_model_folder(tmp_path / "a", assistant)
    save_model_folder(tmp_path / "same", assistant)
    with torch.no_grad():
        assistant.model.projector.layers[0].weight[0, 0] += 1
    save_model_folder(tmp_path / "b", assistant)
    assert digest_model_folder(tmp_path / "a") == digest_model_folder(tmp_path / "same")
    assert digest_model_folder(tmp_path / "a") != digest_model_folder(tmp_path / "b")

    def identity(digest: str = "d", dtype: str = "float32", **changes: object) -> object:
        compute = replace(FP32, dtype=getattr(torch, dtype))
        config = AnswerConfig(**changes)  # type: ignore[arg-type] # each checked by AnswerConfig
        return LocalModelAnswerer(assistant, digest, config=config, compute=compute).identity

    others = [
        identity("e"),
        identity(dtype="bfloat16"),
        identity(temperature=0.5),
        identity(batch_size=3),
        identity(choice_method="letter"),
    ]
    assert identity() not in others
    assert identity() == identity(concurrency=3, timeout=9.0, seed=4), "greedy answers have no seed"
    assert identity(temperature=0.5, seed=4) != identity(temperature=0.5)


def test_sampled_answers_depend_on_the_seed_and_the_item(
    assistant: LlavaBundle, photos: Path
) -> None:
    """The same seed samples the same answers; equal questions get different ones."""
    conversation = questions(1).items[0].conversation
    items = [replace(question(0), id=f"q{i}", conversation=conversation) for i in range(5)]

    def sample(seed: int) -> list[str]:
        config = AnswerConfig(temperature=3.0, seed=seed)
        return [answer.text for answer in ask(assistant, items, photos, config).values()]

    assert sample(7) == sample(7) != sample(9)
    assert len(set(sample(7))) > 1


def test_invalid_settings_are_rejected(assistant: LlavaBundle) -> None:
    """Messages name the setting."""
    with pytest.raises(UsageError, match="choice_method is 'luck'; choose one of generation"):
        AnswerConfig(choice_method="luck")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="batch_size is 0"):
        AnswerConfig(batch_size=0)
    with pytest.raises(UsageError, match=r"top_p is 0"):
        LocalModelAnswerer(assistant, "d", config=AnswerConfig(top_p=0), compute=FP32)
