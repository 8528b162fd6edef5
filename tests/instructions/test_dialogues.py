"""Dialogues have the requested shares, are independent of each other, and are counted if they are not written."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from caldera.annotations.annotated_image import AnnotatedImage, AnnotationSet, Instance
from caldera.annotations.boxes import Box
from caldera.conversation import ImageRef, label_images
from caldera.errors import UsageError
from caldera.instructions.dialogues import (
    Exchange,
    GeneratedData,
    Kind,
    NothingToWrite,
    RelatedImages,
    assign_kinds,
    generate_dialogues,
)
from caldera.instructions.scripted_teacher import ScriptedTeacher
from caldera.scenes.scene import OBJECT_KINDS
from tests.instructions.annotated_scenes import annotate, sample_scenes


@pytest.fixture(scope="module")
def annotations() -> AnnotationSet:
    """Return two hundred annotated scenes."""
    images = [annotate(scene) for scene in sample_scenes(200, seed=8)]
    return AnnotationSet(tuple(images), tuple(OBJECT_KINDS))


def write(
    annotations: AnnotationSet, kinds: dict[Kind, float], seed: int = 1, relative_to: str = "/data"
) -> GeneratedData:
    """Return data of the scripted teacher."""
    teacher = ScriptedTeacher(annotations.categories)
    return generate_dialogues(annotations, teacher, kinds, seed=seed, relative_to=Path(relative_to))


def test_every_image_gets_its_share_of_every_kind(annotations: AnnotationSet) -> None:
    """All of one kind, about three in ten of another; written and rejected ones add up to all."""
    ticks: list[None] = []
    data = generate_dialogues(
        annotations,
        ScriptedTeacher(annotations.categories),
        {"vqa": 1.0, "reasoning": 0.3},
        seed=1,
        relative_to=Path(),
        tick=lambda: ticks.append(None),
    )
    num_rejected = data.rejected.total()
    assert data.by_kind["vqa"] == 200
    assert data.by_kind["reasoning"] + num_rejected == pytest.approx(60, abs=20)
    assert len(data.conversations) == data.by_kind.total() == len(ticks) - num_rejected
    assert {reason.split(":")[0] for reason in data.rejected} <= {"reasoning"}
    assert all("no certain fact" in reason for reason in data.rejected)


def test_data_follow_from_the_seed(
    annotations: AnnotationSet,
) -> None:
    """The choice of images, and the order of image and text."""
    kinds: dict[Kind, float] = {"vqa": 0.5, "context": 0.5}
    first, same, other = (write(annotations, kinds, seed).conversations for seed in (1, 1, 2))
    assert first == same
    assert {record.id for record in first} != {record.id for record in other}


def test_dialogues_of_an_image_are_independent_of_other_images(
    annotations: AnnotationSet,
) -> None:
    """More or fewer images, or another order, change no other dialogue about one image."""
    kinds: dict[Kind, float] = {"conversation": 0.7, "caption": 1.0}
    all_records = {record.id: record for record in write(annotations, kinds).conversations}
    part = replace(annotations, images=annotations.images[50:10:-2])
    fewer = {record.id: record for record in write(part, kinds).conversations}
    assert len(fewer) > 20
    assert all(all_records[name] == record for name, record in fewer.items())
    listed = [image for image, _, _ in assign_kinds(part.images, kinds, 1)]
    assert listed == sorted(listed, key=part.images.index)


def test_ids_are_unique(annotations: AnnotationSet) -> None:
    """They are composed of images and kind."""
    records = write(annotations, {"caption": 1.0, "vqa": 1.0, "context": 1.0}).conversations
    assert len({record.id for record in records}) == len(records)
    for record in records:
        images, kind = record.id.rsplit("-", 1)
        assert images.split("+") == [Path(path).stem for path in record.images]
        assert (kind == "context") is (len(record.images) > 1)


def test_a_single_image_is_before_or_after_its_question(annotations: AnnotationSet) -> None:
    """As in LLaVA's data: each about as often, on a line of its own, in the first turn only."""
    num_before = 0
    records = write(annotations, {"conversation": 1.0}).conversations
    for record in records:
        first, *rest = record.turns
        assert len(first.images) == 1
        assert not any(turn.images for turn in rest)
        if isinstance(first.parts[0], ImageRef):
            num_before += 1
            assert first.text.startswith("\n")
        else:
            assert isinstance(first.parts[1], ImageRef)
            assert first.text.endswith("\n")
    assert num_before / len(records) == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize(
    ("relative_to", "path"),
    [("/images", "x.jpg"), ("/data", "../images/x.jpg"), ("/", "images/x.jpg")],
)
def test_paths_are_relative_to_the_data_file(
    annotations: AnnotationSet, relative_to: str, path: str
) -> None:
    """A data file and its images can be moved together."""
    [first, *_] = write(annotations, {"caption": 1.0}, relative_to=relative_to).conversations
    assert first.images[0] == path.replace("x", annotations.images[0].id)


def test_several_images_are_labeled_by_letters() -> None:
    """On a line each, in order, before the question."""
    first, second = ImageRef("1.jpg"), ImageRef("2.jpg")
    labeled = label_images([first, second])
    assert labeled == ("Picture A: ", first, "\n", "Picture B: ", second, "\n")


def test_more_images_than_letters_are_an_error() -> None:
    """Eight images have letters; a ninth is not dropped, but an error."""
    nine = [ImageRef(f"{index}.jpg") for index in range(9)]
    assert [part for part in label_images(nine[:8]) if isinstance(part, ImageRef)] == nine[:8]
    with pytest.raises(UsageError, match=r"9 images .*8"):
        label_images(nine)


def test_groups_are_two_or_three_different_images_that_often_share_a_category(
    annotations: AnnotationSet,
) -> None:
    """The image itself is first; more share a category than random pairs."""
    related = RelatedImages(annotations.images)
    rng = random.Random(1)

    def share(first: AnnotatedImage, second: AnnotatedImage) -> bool:
        return bool(first.counts.keys() & second.counts.keys())

    sizes: Counter[int] = Counter()
    num_sharing = num_random = 0
    for image in annotations.images:
        group = related.group_with(image, rng)
        sizes[len(group)] += 1
        assert group[0] is image
        assert len({member.id for member in group}) == len(group)
        num_sharing += share(*group[:2])
        num_random += share(image, rng.choice(annotations.images))
    assert sizes.keys() == {2, 3}
    assert min(sizes.values()) > 60
    assert num_sharing > 1.5 * num_random


@pytest.mark.parametrize("count", [1, 2])
def test_groups_of_a_small_collection_are_small(annotations: AnnotationSet, count: int) -> None:
    """They have each image once; the teacher rejects a single image, which is counted."""
    few = replace(annotations, images=annotations.images[:count])
    for seed in range(20):
        group = RelatedImages(few.images).group_with(few.images[0], random.Random(seed))
        assert len(group) == count
    data = write(few, {"context": 1.0})
    if count == 1:
        reason = "context: a question about several images needs at least two"
        assert data.rejected == {reason: 1}


class CaptionTeacher:
    """Teacher that repeats a caption."""

    def write(self, kind: Kind, images: Sequence[AnnotatedImage]) -> list[Exchange]:
        """Answer with the first caption; reject images of cats."""
        if "cat" in images[0].captions[0]:
            raise NothingToWrite("cats again")
        return [Exchange("What is it?", images[0].captions[0])]


def test_a_skipped_image_changes_no_group_of_the_others(annotations: AnnotationSet) -> None:
    """A group is the one of the whole collection, or the image alone if that has a skipped one."""
    listed = annotations.images
    usable = listed[1:]
    complete, part = RelatedImages(listed), RelatedImages(usable, listed)
    num_alone = 0
    for seed, image in enumerate(usable):
        expected = complete.group_with(image, random.Random(seed))
        group = part.group_with(image, random.Random(seed))
        num_alone += len(group) == 1
        assert group == ((image,) if listed[0] in expected else expected)
    assert 0 < num_alone < len(usable)


def test_rejections_are_counted_by_kind() -> None:
    """A caption that contains <image> is no reason: it is text in an answer."""
    box = (Instance("dog", Box(0, 0, 1, 1)),)
    images = tuple(
        AnnotatedImage(caption[:3], Path(f"{caption[:3]}.jpg"), 9, 9, (caption,), box)
        for caption in ("An <image> tag", "My <image>", "A dog", "A cat", "Two cats")
    )
    kinds: dict[Kind, float] = {"caption": 1.0, "detail": 1.0}
    data = generate_dialogues(
        AnnotationSet(images), CaptionTeacher(), kinds, seed=0, relative_to=Path()
    )
    answers = [record.turns[1].text for record in data.conversations]
    assert sorted(answers) == ["A dog"] * 2 + ["An <image> tag"] * 2 + ["My <image>"] * 2
    assert data.rejected == {"caption: cats again": 2, "detail: cats again": 2}
