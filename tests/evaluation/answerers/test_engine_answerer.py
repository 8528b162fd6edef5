"""A model folder as what answers: batches, failures that stay single, and options weighed by likelihood."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from caldera.batches.image_sources import DecodedImages
from caldera.conversation import Conversation, Turn
from caldera.devices import choose_device
from caldera.errors import UsageError
from caldera.evaluation.answerers import local_model
from caldera.evaluation.answerers.answerer import Answer, AnswerConfig, ChooseBy
from caldera.evaluation.answerers.local_model import (
    ImageFeatureCache,
    LocalModelAnswerer,
    digest_model_folder,
    split_by_images,
)
from caldera.evaluation.benchmark import Item
from caldera.formats.model_folder import save_model_folder
from caldera.inference.batch_generator import BatchGenerator
from caldera.inference.sampling import SamplingParams
from caldera.model.assistant import LlavaBundle
from tests.evaluation.questions import question, questions

USUAL = AnswerConfig()
COMPUTE = choose_device("cpu", "float32")


def ask(
    assistant: LlavaBundle,
    items: Sequence[Item],
    photos: Path,
    asking: AnswerConfig = USUAL,
    done: Collection[str] = (),
) -> dict[str, Answer]:
    """Ask a random assistant."""
    answers: dict[str, Answer] = {}
    LocalModelAnswerer(assistant, "d", asking=asking, compute=COMPUTE).ask(
        items,
        done,
        lambda some: answers.update({one.id: one for one in some}),
        folder=photos,
        max_new_tokens=4,
    )
    return answers


def test_batches_answer_as_single_items_do(assistant: LlavaBundle, photos: Path) -> None:
    """Whatever is answered together, with images and without, each item gets the answer it gets alone."""
    items = questions(9).items
    together = ask(assistant, items, photos, AnswerConfig(batch_size=4))
    generator = BatchGenerator(assistant, DecodedImages(assistant.processor))
    for item in items:
        prompt = generator.prompt(item.conversation, photos)
        [alone] = generator.generate([prompt], SamplingParams(max_new_tokens=4))
        assert together[item.id] == Answer(item.id, alone)
    assert len({answer.text for answer in together.values()}) > 1, "all alike would prove nothing"


def test_each_image_goes_through_the_tower_once(assistant: LlavaBundle, photos: Path) -> None:
    """However many questions and batches there are, and one image at a time."""
    seen: list[int] = []
    assistant.model.vision.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    items = questions(23).items
    images = {path for item in items for path in item.conversation.images}
    ask(assistant, items, photos, AnswerConfig(batch_size=4))
    assert seen == [1] * len(images)


def test_little_memory_changes_no_answer(
    assistant: LlavaBundle, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where features of two images fit, each image is still seen once, and the answers are the same."""
    items = questions(23).items
    answers = ask(assistant, items, photos, AnswerConfig(batch_size=4))
    each = 9 * 10 * 4  # patches, width, bytes of a number
    monkeypatch.setattr(local_model, "MAX_BYTES", 2 * each + 1)
    assert ImageFeatureCache(assistant).capacity == 2
    seen: list[int] = []
    assistant.model.vision.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    assert ask(assistant, items, photos, AnswerConfig(batch_size=4)) == answers
    assert len(seen) == 7


def test_blocks_keep_a_images_items_together() -> None:
    """Of 23 items about seven images: two images a block, every item once, in order; one block where all fit."""
    items = questions(23).items
    assert list(split_by_images(items, 7)) == [list(items)]
    blocks = list(split_by_images(items, 2))
    shown = [{path for item in block for path in item.conversation.images} for block in blocks]
    assert [len(images) for images in shown] == [2, 2, 2, 1]
    assert sum(map(len, shown)) == 7, "no image is in two blocks"
    assert all(block == sorted(block, key=items.index) for block in blocks)
    assert sorted(item.id for block in blocks for item in block) == sorted(
        item.id for item in items
    )
    assert list(split_by_images((), 2)) == []


def test_only_the_item_with_the_broken_image_fails(assistant: LlavaBundle, photos: Path) -> None:
    """A broken image and a question too long fail with their reasons; the others of the batch are answered."""
    (photos / "1.png").write_bytes(b"no image")
    items = [*questions(6).items, question(6, tail=" what" * 3000)]
    answers = ask(assistant, items, photos)
    failed = {name: answer.error for name, answer in answers.items() if answer.error}
    assert failed.keys() == {"q1", "q6"}
    assert "1.png is not a JPEG" in failed["q1"]
    assert "room for 2048" in failed["q6"]
    assert len(answers) == 7


@pytest.mark.parametrize("choose_by", ["letter", "option", "option-mean"])
def test_the_likeliest_option_is_chosen(
    assistant: LlavaBundle, photos: Path, choose_by: ChooseBy
) -> None:
    """Each option's likelihood is that of its tokens one by one, each behind all before it."""
    options = ("cat", "the dog in the image", "bird is on the meadow")
    items = questions(4, choices=options).items
    answers = ask(assistant, items, photos, AnswerConfig(choice_method=choose_by))
    shown = ("A", "B", "C") if choose_by == "letter" else options
    for item in items:
        weights = [token_by_token(assistant, item, option, photos) for option in shown]
        told = answers[item.id].option_log_likelihoods
        assert [tokens for _, tokens in told] == [len(each) for each in weights]
        assert [total for total, _ in told] == pytest.approx([sum(each) for each in weights], abs=1e-4)  # fmt: skip
        means = [sum(each) / (len(each) if choose_by == "option-mean" else 1) for each in weights]
        assert answers[item.id].text == "ABC"[means.index(max(means))]


def token_by_token(assistant: LlavaBundle, item: Item, option: str, photos: Path) -> list[float]:
    """Weigh an option without a batch: a forward pass for each of its tokens."""
    generator = BatchGenerator(assistant, DecodedImages(assistant.processor))
    said = Turn("assistant", (option,))
    asked = generator.prompt(item.conversation, photos)
    again = (*item.conversation.turns, said, Turn("user", ("?",)))
    whole = generator.prompt(Conversation("x", again), photos).ids
    end = whole.index(assistant.tokenizer.eos_token_id, len(asked.ids))
    found = []
    for at in range(len(asked.ids), end):
        pixels = DecodedImages(assistant.processor)(asked.images)
        with torch.inference_mode():
            embedded = assistant.model.embed(torch.tensor([whole[:at]]), pixels, asked.layouts)
            logits = assistant.model.language(inputs_embeds=embedded).logits[0, -1]
        found.append(float(logits.float().log_softmax(-1)[whole[at]]))
    return found


def test_identity_tells_what_answers_depend_on(assistant: LlavaBundle, tmp_path: Path) -> None:
    """Another folder, precision, decoding or batch is another identity; what does not count changes nothing."""
    save_model_folder(tmp_path / "a", assistant)
    save_model_folder(tmp_path / "same", assistant)
    with torch.no_grad():
        assistant.model.projector.layers[0].weight[0, 0] += 1
    save_model_folder(tmp_path / "b", assistant)
    assert digest_model_folder(tmp_path / "a") == digest_model_folder(tmp_path / "same")
    assert digest_model_folder(tmp_path / "a") != digest_model_folder(tmp_path / "b")

    def identity(digest: str = "d", dtype: str = "float32", **changes: object) -> object:
        compute = replace(COMPUTE, dtype=getattr(torch, dtype))
        asking = AnswerConfig(**changes)  # type: ignore[arg-type] # each checked by Asking
        return LocalModelAnswerer(assistant, digest, asking=asking, compute=compute).identity

    others = [
        identity("e"), identity(dtype="bfloat16"), identity(temperature=0.5), identity(batch_size=3),
        identity(choose_by="letter"),
    ]  # fmt: skip
    assert identity() not in others
    assert identity() == identity(concurrency=3, timeout=9.0, seed=4), "greedy answers have no seed"
    assert identity(temperature=0.5, seed=4) != identity(temperature=0.5)


def test_settings_that_cannot_be_are_refused(assistant: LlavaBundle) -> None:
    """Messages name the setting."""
    with pytest.raises(UsageError, match="choose_by is 'luck'; write one of generation"):
        AnswerConfig(choice_method="luck")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="batch_size is 0"):
        AnswerConfig(batch_size=0)
    with pytest.raises(UsageError, match=r"top_p is 0"):
        LocalModelAnswerer(assistant, "d", asking=AnswerConfig(top_p=0), compute=COMPUTE)
