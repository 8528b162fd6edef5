"""A data set from annotations: shares are kept, chance belongs to each image alone, what was declined is counted."""

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from caldera.annotations.annotated_image import AnnotatedImage, AnnotationSet, Instance
from caldera.annotations.boxes import Box
from caldera.annotations.registry import SourceOptions
from caldera.conversation import ImageRef, label_images, read_conversations
from caldera.errors import InputError, OutputError, UsageError
from caldera.instructions.dialogues import (
    Exchange,
    GeneratedData,
    Kind,
    RelatedImages,
    assign_kinds,
    generate_dialogues,
)
from caldera.instructions.generate import GenerateConfig, generate_data
from caldera.instructions.scripted_teacher import ScriptedTeacher
from caldera.llm_client.client import NothingToWrite
from caldera.progress import NoProgress
from caldera.scenes.captions import captions_of
from caldera.scenes.drawing import glyph_shapes
from caldera.scenes.scene import OBJECT_KINDS, SIDE, sample_scene


@pytest.fixture(scope="module")
def annotations() -> AnnotationSet:
    """Two hundred annotated scenes."""
    images = []
    for index in range(200):
        scene = sample_scene(index, seed=8, split="train", shapes=glyph_shapes())
        things = tuple(Instance(group.kind.name, thing.box) for group, thing in scene.objects)
        path = Path(f"/pictures/{scene.name}.jpg")
        images.append(AnnotatedImage(scene.name, path, SIDE, SIDE, captions_of(scene), things))
    return AnnotationSet(tuple(images), tuple(OBJECT_KINDS))


def write(
    annotations: AnnotationSet, kinds: dict[Kind, float], seed: int = 1, beside: str = "/data"
) -> GeneratedData:
    """Have the scripted teacher write."""
    teacher = ScriptedTeacher(annotations.categories)
    return generate_dialogues(annotations, teacher, kinds, seed=seed, beside=Path(beside))


def test_every_image_gets_its_share_of_every_kind(annotations: AnnotationSet) -> None:
    """All of one kind, about three in ten of another; written and refused add up to what was asked."""
    ticks: list[None] = []
    written = generate_dialogues(
        annotations,
        ScriptedTeacher(annotations.categories),
        {"vqa": 1.0, "reasoning": 0.3},
        seed=1,
        beside=Path(),
        tick=lambda: ticks.append(None),
    )
    declined = written.rejected.total()
    assert written.by_kind["vqa"] == 200
    assert written.by_kind["reasoning"] + declined == pytest.approx(60, abs=20)
    assert len(written.conversations) == written.by_kind.total() == len(ticks) - declined
    assert {reason.split(":")[0] for reason in written.rejected} <= {"reasoning"}
    assert all("nothing beyond doubt" in reason for reason in written.rejected)


def test_the_same_seed_writes_the_same_and_another_writes_other_images(
    annotations: AnnotationSet,
) -> None:
    """Which images are chosen, and where an image stands, follow from the seed."""
    kinds: dict[Kind, float] = {"vqa": 0.5, "context": 0.5}
    first, again, other = (write(annotations, kinds, seed).conversations for seed in (1, 1, 2))
    assert first == again
    assert {each.id for each in first} != {each.id for each in other}


def test_what_is_written_about_a_image_does_not_hang_on_the_others(
    annotations: AnnotationSet,
) -> None:
    """An image more or less, or another order, changes no other dialogue about one image."""
    kinds: dict[Kind, float] = {"conversation": 0.7, "caption": 1.0}
    whole = {each.id: each for each in write(annotations, kinds).conversations}
    part = replace(annotations, images=annotations.images[50:10:-2])
    fewer = {each.id: each for each in write(part, kinds).conversations}
    assert len(fewer) > 20
    assert all(whole[name] == each for name, each in fewer.items())
    listed = [image for image, _, _ in assign_kinds(part.images, kinds, 1)]
    assert listed == sorted(listed, key=part.images.index)


def test_records_are_named_apart(annotations: AnnotationSet) -> None:
    """By their images and their kind."""
    written = write(annotations, {"caption": 1.0, "vqa": 1.0, "context": 1.0}).conversations
    assert len({each.id for each in written}) == len(written)
    for each in written:
        images, kind = each.id.rsplit("-", 1)
        assert images.split("+") == [Path(path).stem for path in each.images]
        assert (kind == "context") is (len(each.images) > 1)


def test_a_lone_image_stands_before_or_after_its_question(annotations: AnnotationSet) -> None:
    """As in LLaVA's data, each about as often, on a line of its own, in the first turn alone."""
    before = 0
    written = write(annotations, {"conversation": 1.0}).conversations
    for each in written:
        first, *rest = each.turns
        assert len(first.images) == 1
        assert not any(turn.images for turn in rest)
        asked = first.parts
        if isinstance(asked[0], ImageRef):
            before += 1
            assert first.text.startswith("\n")
        else:
            assert isinstance(asked[1], ImageRef)
            assert first.text.endswith("\n")
    assert before / len(written) == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize(
    ("beside", "path"),
    [("/pictures", "x.jpg"), ("/data", "../pictures/x.jpg"), ("/", "pictures/x.jpg")],
)
def test_paths_start_from_the_data_files_folder(
    annotations: AnnotationSet, beside: str, path: str
) -> None:
    """So that a data file and its images can be moved together."""
    [first, *_] = write(annotations, {"caption": 1.0}, beside=beside).conversations
    assert first.images[0] == path.replace("x", annotations.images[0].id)


def test_several_images_are_called_by_letters() -> None:
    """A line each, in order, before the question."""
    one, other = ImageRef("1.jpg"), ImageRef("2.jpg")
    assert label_images([one, other]) == ("Picture A: ", one, "\n", "Picture B: ", other, "\n")


def test_more_images_than_letters_are_refused() -> None:
    """Eight images all have their letter; a ninth is not dropped, but refused."""
    nine = [ImageRef(f"{at}.jpg") for at in range(9)]
    assert [part for part in label_images(nine[:8]) if isinstance(part, ImageRef)] == nine[:8]
    with pytest.raises(UsageError, match="9 pictures are shown together, over the limit of 8"):
        label_images(nine)


def test_companions_are_two_or_three_different_images_that_often_share_something(
    annotations: AnnotationSet,
) -> None:
    """The image itself comes first; more share a kind than by chance."""
    finder = RelatedImages(annotations.images)
    chance = random.Random(1)

    def share(one: AnnotatedImage, other: AnnotatedImage) -> bool:
        return bool(one.counts.keys() & other.counts.keys())

    sizes: Counter[int] = Counter()
    sharing = by_chance = 0
    for image in annotations.images:
        several = finder.group_with(image, chance)
        sizes[len(several)] += 1
        assert several[0] is image
        assert len({each.id for each in several}) == len(several)
        sharing += share(*several[:2])
        by_chance += share(image, chance.choice(annotations.images))
    assert sizes.keys() == {2, 3}
    assert min(sizes.values()) > 60
    assert sharing > 1.5 * by_chance


@pytest.mark.parametrize("count", [1, 2])
def test_a_small_collection_has_few_companions(annotations: AnnotationSet, count: int) -> None:
    """All there are, once each; a single image is refused by the teacher, and counted."""
    few = replace(annotations, images=annotations.images[:count])
    for seed in range(20):
        several = RelatedImages(few.images).group_with(few.images[0], random.Random(seed))
        assert len(several) == count
    written = write(few, {"context": 1.0})
    if count == 1:
        reason = "context: a question about several pictures needs at least two"
        assert written.rejected == {reason: 1}


class Parrot:
    """A teacher that says what a caption says."""

    name = "parrot"

    def write(self, kind: Kind, images: Sequence[AnnotatedImage]) -> list[Exchange]:
        """Answer with the first caption; decline images of cats."""
        if "cat" in images[0].captions[0]:
            raise NothingToWrite("cats again")
        return [Exchange("What is it?", images[0].captions[0])]


def test_what_no_file_could_hold_is_refused_and_counted() -> None:
    """A caption that says <image> would be read as an image; reasons are kept apart by kind."""
    box = (Instance("dog", Box(0, 0, 1, 1)),)
    images = tuple(
        AnnotatedImage(caption[:3], Path(f"{caption[:3]}.jpg"), 9, 9, (caption,), box)
        for caption in ("An <image> tag", "My <image>", "A dog", "A cat", "Two cats")
    )
    written = generate_dialogues(
        AnnotationSet(images), Parrot(), {"caption": 1.0, "detail": 1.0}, seed=0, beside=Path()
    )
    assert [each.turns[1].text for each in written.conversations] == ["A dog"] * 2
    assert written.rejected["caption: cats again"] == written.rejected["detail: cats again"] == 2
    marked = {reason: count for reason, count in written.rejected.items() if "<image>" in reason}
    assert list(marked.values()) == [2, 2]


@pytest.fixture
def pairs(tmp_path: Path) -> GenerateConfig:
    """A table of three images, one of which is not there."""
    (tmp_path / "data").mkdir()
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / "data" / name).write_bytes(b"picture")
    path = tmp_path / "data" / "pairs.csv"
    path.write_text("image,caption\n1.jpg,A dog\n2.jpg,A cat\n3.jpg,A cup\n")
    return GenerateConfig(source="pairs", path=path, options=SourceOptions(), max_bad=0.5)


def test_a_file_is_written_with_a_list_of_what_was_left_out(
    pairs: GenerateConfig, tmp_path: Path
) -> None:
    """Pairs become captions by default; the list names place and reason."""
    out = tmp_path / "out" / "train.json"
    written = generate_data(pairs, out, NoProgress())
    assert read_conversations(out) == written.conversations
    assert [each.images[0] for each in written.conversations] == [
        "../data/1.jpg",
        "../data/2.jpg",
    ]
    [line] = (tmp_path / "out" / "train.bad.jsonl").read_text().splitlines()
    skipped = json.loads(line)
    assert skipped["where"] == f"{pairs.path}:4"
    assert "3.jpg does not exist" in skipped["reason"]


def test_bad_annotations_leave_no_file(pairs: GenerateConfig, tmp_path: Path) -> None:
    """Neither where nothing may be left out, nor where the teacher has nothing to say."""
    out = tmp_path / "out" / "train.json"
    with pytest.raises(InputError, match=r"pairs\.csv:4: .*3\.jpg does not exist"):
        generate_data(replace(pairs, max_bad=0.0), out, NoProgress())
    with pytest.raises(InputError, match=r"wrote nothing about .*: {'vqa: the annotations hold no"):
        generate_data(replace(pairs, kinds="vqa"), out, NoProgress())
    assert not out.parent.exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        generate_data(pairs, tmp_path / "file" / "train.json", NoProgress())
