"""Chat with LLaVA-OneVision: one image in tiles, several in one view each, whenever they join the conversation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast

from caldera.batches.image_sources import DecodedImages
from caldera.chat.session import Session
from caldera.conversation import Conversation, Turn
from caldera.evaluation.answerers.local_model import ImageFeatureCache
from caldera.formats.model_folder import load_model_folder
from caldera.images.anyres import ONE_OF_SEVERAL
from caldera.inference.attention_maps import compute_attention_maps, token_boxes
from caldera.inference.detokenizer import TokenIds
from caldera.inference.engine import Engine, offline_config
from caldera.inference.likelihood import LikelihoodScorer
from caldera.inference.prompts import PromptBuilder, process_image
from caldera.inference.sampling import SamplingParams
from caldera.model.bundle import LlavaBundle
from tests.engine_answers import generate, generate_ids
from tests.tiny_onevision import (
    PATCHES_PER_SIDE,
    SIZES,
    Reference,
    draw,
    import_onevision,
    question,
)

NEW_TOKENS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A folder of transformers, imported."""
    return import_onevision(tmp_path_factory.mktemp("onevision"), tokenizer)


@pytest.fixture
def onevision(folder: Path) -> LlavaBundle:
    """The model of the folder."""
    return load_model_folder(folder)


def test_answers_are_those_of_transformers(
    onevision: LlavaBundle, folder: Path, tmp_path: Path
) -> None:
    """Greedy answers about none, one and several images, in one batch."""
    paths = draw(tmp_path)
    reference = Reference(folder)
    questions = [question(images) for images in ([], paths[1:2], paths[5:6], paths[:3])]
    answers = generate_ids(onevision, questions, sampling=SamplingParams(max_new_tokens=NEW_TOKENS))
    for conversation, tokens in zip(questions, answers, strict=True):
        inputs = reference.inputs(conversation)
        with torch.no_grad():
            expected = reference.model.generate(
                **inputs,
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                suppress_tokens=TokenIds(onevision).banned,
            )[0, inputs["input_ids"].shape[1] :].tolist()
        assert list(tokens) == expected[: len(tokens)]
        assert len(tokens) >= min(1, NEW_TOKENS)


def test_a_second_image_changes_the_form_of_the_first(
    onevision: LlavaBundle, tmp_path: Path
) -> None:
    """In a session, the first image has tiles while it is alone; answers are those without a prefix cache."""
    first, second = draw(tmp_path)[5:7]
    sampling = SamplingParams(max_new_tokens=NEW_TOKENS)
    with Engine(onevision, offline_config(1)) as engine:
        session = Session(engine, sampling)
        session.add_image(first)
        alone = session.build_request("what is it?").prompt
        answer = "".join(session.ask("what is it?"))
        session.add_image(second)
        both = session.build_request("and this?").prompt
        next_answer = "".join(session.ask("and this?"))
        conversation = session.conversation

    assert [image.layout.views for image in alone.images] == [1 + 6 * 4]
    assert [image.layout for image in both.images] == [ONE_OF_SEVERAL, ONE_OF_SEVERAL]
    assert alone.images[0].digest != both.images[0].digest
    turns = conversation.turns
    first_question = Conversation("q", turns[:1])
    [expected] = generate(onevision, [first_question], sampling=sampling)
    [next_expected] = generate(onevision, [Conversation("q", turns[:3])], sampling=sampling)
    assert isinstance(turns[1], Turn)
    assert (answer.strip(), next_answer.strip()) == (expected.strip(), next_expected.strip())


def test_evaluation_encodes_both_forms_of_an_image(onevision: LlavaBundle, tmp_path: Path) -> None:
    """Cached features, and likelihoods computed from them, are those of the pixels of each form."""
    first, second = draw(tmp_path)[5:7]
    builder, pixels = PromptBuilder(onevision), DecodedImages(onevision.processor)
    with Engine(onevision, offline_config(1)) as engine:
        features = ImageFeatureCache(onevision, engine)
        scorers = [LikelihoodScorer(onevision, source) for source in (features, pixels)]
        for images in ([first], [first, second]):
            prompt = builder.from_files(question(images))
            features.encode(prompt.images, prompt.layouts)
            expected = onevision.model.vision(pixels(prompt.images, prompt.layouts))
            actual = features(prompt.images, prompt.layouts)
            torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
            cached, exact = (
                scorer.score([scorer.prompt(question(images), "a dog")])[0].sum
                for scorer in scorers
            )
            assert cached == pytest.approx(exact, abs=1e-4)


@pytest.mark.parametrize("several", [False, True])
def test_an_image_is_prepared_in_the_needed_form_alone(
    onevision: LlavaBundle, several: bool
) -> None:
    """Where the number of images is known, the other form takes neither time nor memory."""
    image = Image.new("RGB", (60, 59))
    prepared = process_image(image, onevision.processor, several=several)
    assert prepared.one_of_several is None
    assert prepared.layout.newline == several


@pytest.mark.parametrize("size", [SIZES[1], SIZES[5], SIZES[7]])
@pytest.mark.parametrize("several", [False, True])
def test_boxes_cover_the_image_once(
    onevision: LlavaBundle, size: tuple[int, int], several: bool
) -> None:
    """Every token has a box or is a newline; boxes of the tiles lie side by side, also where they were scaled down."""
    layout = onevision.processor.layout(size, several=several)
    boxes = token_boxes(size, layout, onevision.processor, onevision.model.vision)
    assert len(boxes) == onevision.model.count_tokens(layout)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    columns, rows = layout.grid(PATCHES_PER_SIDE)
    assert int((areas == 0).sum()) == (1 if several else rows)
    if several:
        return
    tiles = boxes[PATCHES_PER_SIDE**2 :].view(rows, columns + 1, 4)[:, :columns]
    torch.testing.assert_close(tiles[:, 1:, 0], tiles[:, :-1, 2])
    torch.testing.assert_close(tiles[1:, :, 1], tiles[:-1, :, 3])
    # The last pixels of a tile's side belong to no patch.
    covered = float(areas[PATCHES_PER_SIDE**2 :].sum())
    assert 0.7 < covered < 1.1


def test_attention_maps_have_every_image(onevision: LlavaBundle) -> None:
    """Words attend to the tokens of both images, which are as many as their boxes."""
    rng = np.random.default_rng(1)
    images = [
        process_image(
            Image.fromarray(rng.integers(0, 256, (40, 90, 3), dtype=np.uint8)),
            onevision.processor,
        )
        for _ in range(2)
    ]
    conversation = question([Path("a.png"), Path("b.png")])
    prompt, tokens = PromptBuilder(onevision).with_answer_and_images(conversation, "a dog", images)
    maps = compute_attention_maps(onevision, prompt, tokens)
    assert [attention.weights.shape[1] for attention in maps.images] == [10, 10]
    assert [len(attention.boxes) for attention in maps.images] == [10, 10]
