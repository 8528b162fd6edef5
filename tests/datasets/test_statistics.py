"""Statistics of a data file: counted by hand for five records, and general laws."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caldera.conversation import Conversation, ImageRef, Turn, write_conversations
from caldera.datasets.statistics import (
    Branch,
    Histogram,
    compute_statistics,
    first_words,
    kind_of_record,
    objects_of,
    prefix_tree,
)
from caldera.errors import InputError
from caldera.files.skipped_items import SkippedItems


def talk(name: str, images: int, *texts: str) -> Conversation:
    """Return a conversation of alternating questions and answers that starts with its images."""
    refs = tuple(ImageRef(f"{number}.jpg") for number in range(images))
    turns = [
        Turn("assistant" if index % 2 else "user", (*(refs if index == 0 else ()), text))
        for index, text in enumerate(texts)
    ]
    return Conversation(name, tuple(turns))


SET = [
    talk("1-vqa", 1, "\nIs it a dog?\nAnswer shortly.", "Yes.", "Is it big?", "no"),
    talk("2-vqa", 1, "Is it a cat?", "yes"),
    talk("2-detail", 1, "Describe it.", "A small cat sits on a table. The cat sleeps in the image."),
    talk("a/7", 2, "What do both show?", "Two dogs"),
    talk("a/7", 0, "Hello", "Hello to you, my dear friend"),
]  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Write the five records."""
    write_conversations(tmp_path / "data.json", SET)
    return tmp_path / "data.json"


def test_five_records_are_counted(file: Path) -> None:
    """Each count was made by hand."""
    statistics = compute_statistics(file, SkippedItems())
    summary = statistics.as_dict()

    assert (statistics.records, statistics.skipped, summary["repeated ids"]) == (5, 0, 2)
    assert statistics.images == {"0.jpg": 4, "1.jpg": 1}
    assert (summary["records without an image"], summary["records with several"]) == (1, 1)
    assert statistics.turns_per_record.counts == {2: 1, 1: 4}
    assert statistics.question_words.counts == {6: 1, 3: 1, 4: 2, 2: 1, 1: 1}
    assert statistics.answer_words.counts == {1: 3, 13: 1, 2: 1, 6: 1}
    assert statistics.record_words.counts == {11: 1, 5: 1, 15: 1, 6: 1, 7: 1}
    assert statistics.question_prefixes == {
        ("is", "it", "a"): 2, ("is", "it", "big"): 1, ("describe", "it"): 1, ("what", "do", "both"): 1, ("hello",): 1,
    }  # fmt: skip
    assert statistics.short_answers == {"yes": 2, "no": 1, "two dogs": 1}
    assert set(statistics.kinds) == {"vqa", "detail", "a"}
    assert statistics.kinds["detail"].objects == {"cat": 1, "table": 1}
    assert (statistics.kinds["vqa"].records, statistics.kinds["vqa"].answers) == (2, 3)
    assert statistics.kinds["a"].objects == {"dog": 1, "hello": 1, "friend": 1}


def test_invalid_records_are_errors_or_counted(file: Path, tmp_path: Path) -> None:
    """The fraction of skipped records is limited."""
    lines = tmp_path / "data.jsonl"
    write_conversations(lines, SET)
    lines.write_text(lines.read_text() + "{}\n")
    with pytest.raises(InputError, match="field 'conversations' is missing"):
        compute_statistics(lines, SkippedItems())
    assert compute_statistics(lines, SkippedItems(0.2)).skipped == 1
    with pytest.raises(InputError, match="1 of 6 items are invalid"):
        compute_statistics(lines, SkippedItems(0.1))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("000001-conversation", "conversation"),
        ("mix/000001-detail#2", "detail"),
        ("vqa#2/COCO-7", "vqa"),
        ("COCO_train2014-7", "other"),
        ("7", "other"),
    ],
)
def test_an_id_contains_the_kind(name: str, kind: str) -> None:
    """The kind is the ending written by `data generate`, else the name of the source file."""
    assert kind_of_record(name) == kind


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("What's this?", ("what's", "this")),
        ("\nContext: a kitchen.\nWhich cup is red?\nA. one", ("which", "cup", "is")),
        ("Describe\nthe image.", ("describe",)),
        ("\n \n", ()),
        ("", ()),
    ],
)
def test_first_words_of_a_question(question: str, words: tuple[str, ...]) -> None:
    """They are the first words of the line with the question."""
    assert first_words(question) == words


def test_objects_are_things() -> None:
    """Not places, letters, or yes and no."""
    assert objects_of("Yes, two big dogs and a cat on the left of the image.") == {"dog", "cat"}
    assert objects_of("B") == objects_of("yes") == set()


@given(st.lists(st.integers(0, 30), min_size=1), st.floats(0.01, 1))
def test_a_quantile_has_its_share_below(values: list[int], share: float) -> None:
    """At least the share is no longer than the quantile, and less than the share is shorter."""
    quantile = Histogram(Counter(values)).quantile(share)
    assert sum(value <= quantile for value in values) >= share * len(values)
    assert sum(value < quantile for value in values) < share * len(values)
    assert Histogram().quantile(0.5) == Histogram().mean == 0


def test_prefixes_become_a_tree() -> None:
    """The most frequent words come first; words cut off are still in the count before them."""
    counts = [(("is", "it", "a"), 5), (("is", "there"), 3), (("what",), 6), (("who", "is"), 1)]
    assert prefix_tree(counts, (2, 1, 1)) == (
        Branch("is", 8, (Branch("it", 5, (Branch("a", 5),)),)),
        Branch("what", 6),
    )
