"""Descriptions say what several captions agree on, and nothing that boxes or other captions contradict."""

from pathlib import Path

from caldera.annotations.annotated_image import AnnotatedImage, Instance
from caldera.annotations.boxes import Box
from caldera.annotations.coco import read_coco
from caldera.files.skipped_items import SkippedItems
from caldera.instructions.caption_agreement import find_agreement, without_doubtful_counts
from caldera.instructions.caption_words import content_keys

CATEGORIES = frozenset({"person", "cat", "dog", "giraffe", "truck", "zebra"})


def image_of(*captions: str, categories: tuple[str, ...] = ()) -> AnnotatedImage:
    """Return an image with captions, and a large box of each category."""
    boxes = tuple(
        Instance(name, Box(0.1 + 0.2 * index, 0.1, 0.3 + 0.2 * index, 0.9))
        for index, name in enumerate(categories)
    )
    return AnnotatedImage("1", Path("1.jpg"), 640, 480, captions, boxes)


def test_the_first_sentence_has_what_captions_share() -> None:
    """A camera on a tripod that all captions name is told, in the phrase of one of them."""
    image = image_of(
        "A camera on a tripod in a living room.",
        "a camera is set up on a tripod next to a chair",
        "A camera standing on a tripod in front of a window",
        "A room with purple curtains",
        categories=("person",),
    )
    agreement = find_agreement(image, CATEGORIES)
    assert {"camera", "tripod"} <= {*content_keys(agreement.sentences[0])}
    assert "curtain" not in agreement.sentences[0]


def test_a_part_that_only_one_caption_has_is_left_out() -> None:
    """The last words of a caption are dropped if nothing supports them."""
    image = image_of(
        "A dog catching a red ball near a haunted castle",
        "A dog catches",
        "A red ball",
    )
    assert find_agreement(image).sentences == ("A dog is catching a red ball.",)


def test_other_captions_add_what_is_new_and_supported() -> None:
    """The same subject is named again; another posture is a contradiction and is not added."""
    image = image_of(
        "A boy is wearing a red helmet",
        "A boy wearing a red helmet",
        "A boy sits on a couch with a dog",
        "A boy stands on a couch with a dog",
    )
    text = " ".join(find_agreement(image).sentences)
    assert "helmet" in text
    assert "couch with a dog" in text
    assert ("sits" in text) != ("stands" in text)


def test_contradicted_captions_are_not_used() -> None:
    """An object that no box and no other caption shows, another color, and a wrong number are contradictions."""
    wrong_object = image_of(
        "Two giraffes eating grass on a field", "Two zebras grazing in a field", "Zebras in a field of grass",
        categories=("zebra", "zebra"),
    )  # fmt: skip
    color = image_of(
        "A dog on a green truck", "A dog on a white truck", "A dog sits on a white truck"
    )
    number = image_of(
        "Three cats on a bed", "Cats on a bed", "Some cats", categories=("cat", "cat")
    )
    for image in (wrong_object, color, number):
        agreement = find_agreement(image, CATEGORIES)
        assert agreement.trusted == (1, 2), image.captions
        assert agreement.lead != 0


def test_what_captions_deny_is_not_supported() -> None:
    """Where two deny it, where as many deny as state it, and where a box shows what is denied."""
    denied = image_of(
        "There is no dog on the couch.", "No dog is on the couch here.", categories=("couch",)
    )
    disputed = image_of("A man with a hat rides a horse", "A man without a hat rides a horse")
    boxed = image_of(
        "A couch without a dog", "A red couch, a table", "A red couch", categories=("couch", "dog")
    )
    for image, word in ((denied, "dog"), (disputed, "hat"), (boxed, "dog")):
        agreement = find_agreement(image, CATEGORIES)
        assert word not in agreement.supported, image.captions
        assert word not in " ".join(agreement.sentences)
    assert {*content_keys("man rides horse")} <= find_agreement(disputed).supported
    assert find_agreement(disputed).trusted == ()
    assert 0 not in find_agreement(boxed, CATEGORIES).trusted


def test_captions_that_disagree_are_not_trusted() -> None:
    """On a color or a number that as many give otherwise; the fallback is no caption at all."""
    color = image_of("A white dog on a couch", "A black dog on a couch", "A red dog on a bed")
    number = image_of("Two dogs on a couch", "Three small dogs on a couch")
    for image in (color, number):
        assert find_agreement(image, CATEGORIES).trusted == (), image.captions
        assert find_agreement(image, CATEGORIES).sentences == ()


def test_fragments_and_questions_begin_no_description() -> None:
    """Other captions do."""
    for caption in (
        "A brown dog on a bed and a",
        "A brown dog on a bed, is it?",
        "A group of of dogs on a bed",
    ):
        agreement = find_agreement(image_of(caption, "A dog on a bed", "A dog sits on a bed"))
        assert agreement.lead in (1, 2)
        assert agreement.trusted == (1, 2)


def test_captions_veto_counts_of_boxes() -> None:
    """A cat with its reflection has two boxes: it is not counted; nor is what captions number otherwise."""
    two = ("cat", "cat")
    mirrored = image_of("A cat looks into a mirror", "A cat and its reflection", categories=two)
    numbered = image_of("Three cats on a bed", categories=two)
    right = image_of("Two cats on a bed", "A couple of cats", categories=two)
    unnamed = image_of("A messy bed", categories=two)
    assert without_doubtful_counts(mirrored).uncounted == {"cat"}
    assert without_doubtful_counts(numbered).uncounted == {"cat"}
    assert without_doubtful_counts(right).uncounted == set()
    assert without_doubtful_counts(unnamed).uncounted == set()


def test_one_caption_agrees_with_nothing() -> None:
    """There is nothing to share; the caption stays usable as a caption."""
    agreement = find_agreement(image_of("A dog on a bed"))
    assert agreement.sentences == ()
    assert agreement.trusted == (0,)


def test_first_sentences_of_photos_are_supported(third_party: Path) -> None:
    """Of the content words of all first sentences on COCO photos, nine in ten are in two captions or a box."""
    coco = read_coco(third_party / "coco_mini", SkippedItems())
    supported = total = 0
    for image in coco.images:
        agreement = find_agreement(image, frozenset(coco.categories))
        keys = content_keys(agreement.sentences[0]) if agreement.sentences else []
        supported += sum(key in agreement.supported for key in keys)
        total += len(keys)
    assert total > 300
    assert supported / total > 0.85
