"""Training of a LLaVA-OneVision model: one image in tiles and several in one view each, in the same batches."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from caldera.batches.image_sources import DecodedImages
from caldera.batches.packing import BatchBuilder
from caldera.conversation import Conversation, ImageRef, Turn
from caldera.errors import UsageError
from caldera.formats.assemble import assemble
from caldera.formats.model_folder import load_model_folder
from caldera.images.anyres import ONE_OF_SEVERAL, ONEVISION_GRIDS
from caldera.images.decoding import open_image
from caldera.model.bundle import LlavaBundle
from caldera.templates.encoding import IGNORE_INDEX
from caldera.training.hyperparameters import FINETUNE
from caldera.training.job import TrainingData
from tests.laying import batch_of
from tests.tiny_onevision import Reference, draw, import_onevision, question
from tests.training.jobs import build_samples, make_job

STAGE = replace(
    FINETUNE, learning_rate=3e-3, batch_size=4, epochs=2, validation_size=2, max_length=512
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A folder of transformers, imported."""
    return import_onevision(tmp_path_factory.mktemp("onevision"), tokenizer)


def dialogues(images: list[Path]) -> list[Conversation]:
    """Return dialogues about no, one, two or three of the images, each image alone and among others."""
    conversations = []
    for number in range(16):
        paths = [images[(number // 4 + step) % len(images)] for step in range(number % 4)]
        images_of_turn = [ImageRef(path.name) for path in paths]
        parts: tuple[str | ImageRef, ...] = (*images_of_turn, "\nwhat do you see?")
        answer = ("yes", "no", "the dog is on the left")[number % 3]
        turns = (Turn("user", parts), Turn("assistant", (answer,)))
        conversations.append(Conversation(f"r{number}", turns))
    return conversations


@torch.no_grad()
def caldera_logits(assistant: LlavaBundle, images: list[Path]) -> torch.Tensor:
    """Return caldera's logits for a question about images, (tokens, vocabulary)."""
    [sample] = build_samples(
        assistant,
        [Conversation("q", (*question(images).turns, Turn("assistant", ("yes",))))],
        Path(),
    )
    pixels = DecodedImages(assistant.processor)(sample.images, sample.layouts)
    ids = torch.tensor([sample.ids])
    embedded = assistant.model.embed(ids, pixels, sample.layouts)
    logits: torch.Tensor = assistant.model.language(inputs_embeds=embedded).logits[0]
    return logits


def test_a_trained_folder_has_the_same_logits_in_transformers(folder: Path, tmp_path: Path) -> None:
    """From import through training with cached features to the folder that transformers loads."""
    paths = draw(tmp_path)
    data = TrainingData(conversations=dialogues(paths[5:]), images=tmp_path)
    trained, result = make_job(
        load_model_folder(folder), tmp_path, tmp_path / "run", STAGE, data=data
    ).run()
    assert result is not None
    assert result.first_validation_loss is not None
    assert result.last_validation_loss is not None
    assert result.last_validation_loss < result.first_validation_loss - 0.1
    assert trained.card.anyres_max == 9

    reference = Reference(tmp_path / "run" / "model")
    loaded = load_model_folder(tmp_path / "run" / "model")
    for images in ([], paths[5:6], paths[6:7], paths[4:7]):
        inputs = reference.inputs(question(images))
        prompt = inputs["input_ids"].shape[1]
        torch.testing.assert_close(
            caldera_logits(loaded, images)[:prompt], reference.logits(inputs), atol=1e-5, rtol=0
        )


def test_an_image_alone_and_among_others_has_features_of_both_forms(
    folder: Path, tmp_path: Path
) -> None:
    """The loss with cached features is that of pixels, in fp32, to the last digits."""
    losses = []
    paths = draw(tmp_path)
    for cache_features in (True, False):
        data = TrainingData(conversations=dialogues(paths[5:]), images=tmp_path)
        stage = replace(STAGE, cache_features=cache_features, max_steps=2)
        out = tmp_path / f"run-{cache_features}"
        _, result = make_job(load_model_folder(folder), tmp_path, out, stage, data=data).run()
        assert result is not None
        losses.append(result.last_validation_loss)
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_shared_prefixes_do_not_change_the_loss(folder: Path, tmp_path: Path) -> None:
    """Conversations about the same images share their tokens; one about an image alone shares nothing with them."""
    paths = draw(tmp_path)
    assistant = load_model_folder(folder)
    both = dialogues(paths[5:])[2::4]
    again = [
        replace(conversation, id=f"{conversation.id}b", turns=(conversation.turns[0], Turn("assistant", ("a cat",))))
        for conversation in both
    ]  # fmt: skip
    samples = build_samples(assistant, [*both, *again, *dialogues(paths[5:])[1::4]], tmp_path)
    losses = []
    for share in (True, False):
        builder = BatchBuilder(
            load_images=DecodedImages(assistant.processor), share_prefixes=share, max_tokens=10_000
        )
        model = assistant.model
        model.choose_batch_layout("sdpa")
        with torch.no_grad():
            losses.append(sum(float(model(batch).total) for batch in builder.build(samples)))
        num_layouts = {layout.newline for sample in samples for layout in sample.layouts}
        assert num_layouts == {True, False}
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


def test_gradients_are_those_of_transformers(folder: Path, tmp_path: Path) -> None:
    """Through the bilinear scaling and the newline of each row and image: loss and gradients of every weight."""
    paths = draw(tmp_path)
    assistant, reference = load_model_folder(folder), Reference(folder)
    for images in (paths[1:2], paths[4:7]):
        conversation = Conversation("q", (*question(images).turns, Turn("assistant", ("a dog",))))
        samples = build_samples(assistant, [conversation], Path())
        assert (samples[0].layouts[0] == ONE_OF_SEVERAL) == (len(images) > 1)
        assistant.model.zero_grad()
        reference.model.zero_grad()
        loss = assistant.model(batch_of(assistant, samples))
        (loss.total / loss.num_tokens).backward()
        pixels = reference.processor.image_processor(
            [[open_image(path) for path in images]], return_tensors="pt"
        )
        labels = torch.tensor([samples[0].labels])
        expected: Any = reference.model(
            input_ids=torch.tensor([samples[0].ids]), labels=labels, **pixels
        ).loss
        expected.backward()
        assert int((labels != IGNORE_INDEX).sum()) == loss.num_tokens
        assert loss.mean == pytest.approx(expected.item(), abs=1e-5)
        newline = assistant.model.projector.image_newline
        assert newline is not None
        pairs = [
            (newline, reference.model.model.image_newline),
            *zip(
                assistant.model.vision.tower.parameters(),
                reference.model.model.vision_tower.parameters(),
                strict=True,
            ),
            *zip(
                assistant.model.language.base_model.parameters(),
                reference.model.model.language_model.parameters(),
                strict=True,
            ),
        ]
        compared = 0
        for weight, other in pairs:
            if other.grad is None:
                assert weight.grad is None
                continue
            torch.testing.assert_close(weight.grad, other.grad, atol=1e-5, rtol=1e-4)
            compared += 1
        assert compared > 40


def test_a_stage_makes_a_model_of_this_kind(
    vision_folder: Path, language_folder: Path, photos: Path, tmp_path: Path
) -> None:
    """Joined towers become a LLaVA-OneVision, whose folder has its model type; the limit needs tiles."""
    tiles = {"aspect": "anyres", "grid_pinpoints": ONEVISION_GRIDS, "anyres_max": 9}
    stage = replace(STAGE, **tiles, max_steps=1)  # type: ignore[arg-type]
    start = assemble(vision_folder, language_folder, seed=3)
    trained, _ = make_job(start, photos, tmp_path / "run", stage).run()
    assert trained.card.anyres_max == trained.processor.anyres_max == 9
    config = json.loads((tmp_path / "run/model/config.json").read_text())
    assert (config["model_type"], config["vision_aspect_ratio"]) == (
        "llava_onevision",
        "anyres_max_9",
    )
    with pytest.raises(UsageError, match="anyres_max is 9, but aspect is pad; set aspect=anyres"):
        replace(STAGE, aspect="pad", anyres_max=9)
