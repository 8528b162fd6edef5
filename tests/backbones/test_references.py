"""Tests of references of names to what they name, and of their loss."""

import math
import random
from dataclasses import replace
from itertools import islice

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from backbones.corpus_reader import DocumentEncoder
from backbones.language_pretraining import train_tokenizer
from backbones.patch_words import WORDS, patch_labels
from backbones.quizzes import count_objects, single_objects
from backbones.references import NO_REFERENCE, ReferenceHead
from backbones.text_corpus import CorpusSegment, bags_of_words
from caldera.scenes.drawing import glyph_shapes
from caldera.scenes.scene import BACKGROUNDS, Scene, sample_scene


@pytest.fixture(scope="module")
def trained() -> PreTrainedTokenizerFast:
    """Train a tokenizer on the words of bags."""
    return train_tokenizer((f" {word} dogs A B C" * 20 for word in WORDS), 600)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """Return two scenes with a single dog and no cat."""
    shapes = glyph_shapes()
    sampled = (sample_scene(index, seed=5, split="train", shapes=shapes) for index in range(3000))
    with_dog = (
        scene
        for scene in sampled
        if "dog" in single_objects(scene) and "cat" not in count_objects(scene)
    )
    return list(islice(with_dog, 2))


def described(scene: Scene) -> CorpusSegment:
    """Return the description of a scene."""
    return CorpusSegment("", cells=bags_of_words(scene, random.Random(1)), scene=scene)


def test_a_name_refers_to_its_object(trained: PreTrainedTokenizerFast, scenes: list[Scene]) -> None:
    """The center of a single object and the number of objects; 0 of an absent kind; other words to nothing."""
    scene = scenes[0]
    document = [described(scene), CorpusSegment(" dog cat dogs three")]
    *_, dog, cat, dogs, three = DocumentEncoder(trained)(document).references
    across, down = single_objects(scene)["dog"].center
    assert dog[:3] == pytest.approx(((across - 0.5) / 0.2, (down - 0.5) / 0.2, 1))
    assert all(map(math.isnan, dog[3:]))
    assert dogs == pytest.approx(dog, nan_ok=True)
    assert all(map(math.isnan, cat[:2]))
    assert cat[2] == 0
    assert all(map(math.isnan, three))


def test_with_several_scenes_names_have_numbers_and_letters_settings(
    trained: PreTrainedTokenizerFast, scenes: list[Scene]
) -> None:
    """A position would be ambiguous; a letter beyond the images refers to nothing."""
    document = [*map(described, scenes), CorpusSegment(" dog B C")]
    *_, dog, second, third = DocumentEncoder(trained)(document).references
    assert all(map(math.isnan, dog[:2]))
    assert dog[2:4] == (1, 1)
    assert second[-1] == list(BACKGROUNDS).index(scenes[1].setting)
    assert all(map(math.isnan, third))


def test_the_loss_is_the_squared_error_and_the_cross_entropy_of_what_is_known() -> None:
    """With weights of zero the prediction is the bias, and all settings are equally likely."""
    head = ReferenceHead(7)
    with torch.no_grad():
        for weight in head.parameters():
            weight.zero_()
        head.values.bias.copy_(torch.tensor([0.5, 0, 0, 0, 0]))
    references = torch.tensor(NO_REFERENCE).repeat(1, 5, 1)
    references[0, 1, :3] = torch.tensor([1.5, 2, 3])
    references[0, 2, 0] = 0.5
    references[0, 3, -1] = 4
    loss = head(torch.randn(1, 5, 7), references)
    values = (1 + 0) / 2 + 4 + 9
    assert float(loss.detach()) == pytest.approx(values / 5 + math.log(len(BACKGROUNDS)) / 2)
    unknown = head(torch.randn(1, 5, 7), torch.tensor(NO_REFERENCE).repeat(1, 5, 1))
    assert float(unknown.detach()) == 0


def test_a_bag_refers_to_its_kind_in_the_images_so_far(
    trained: PreTrainedTokenizerFast, scenes: list[Scene]
) -> None:
    """Numbers in the images up to its own; for a setting, which of them have it; nothing for a bag without either."""
    first, second = scenes
    second = replace(second, setting=first.setting)
    references = DocumentEncoder(trained)([described(first), described(second)]).references[1:]
    expected = []
    for number, scene in enumerate((first, second)):
        so_far = (first, second)[: number + 1]
        for labels, bag in zip(patch_labels(scene), described(scene).cells, strict=True):
            numbers: list[float] = [1] * len(so_far)
            if len(labels) > 1:
                is_named = f" {labels[0]}" in bag
                numbers = [count_objects(other).get(labels[0], 0) for other in so_far]
                numbers = numbers if is_named else []
            expected.append((math.nan, math.nan, *numbers, *[math.nan] * (4 - len(numbers))))
    assert len(references) == len(expected)
    for reference, values in zip(references, expected, strict=True):
        assert reference == pytest.approx(values, nan_ok=True)
