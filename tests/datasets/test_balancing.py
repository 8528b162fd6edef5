"""Balancing follows the paper's rule."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caldera.conversation import (
    Conversation,
    ImageRef,
    Turn,
    read_conversations,
    write_conversations,
)
from caldera.datasets.balancing import balance, balance_file
from caldera.errors import InputError

RARE, FREQUENT, UNIQUE = "A zebra in a field.", "A dog in a park.", "A quagga."
WORDS = ("dog", "cat", "fog", "cup", "kite")


def test_rare_captions_are_selected_and_frequent_ones_sampled() -> None:
    """Three captions with a phrase are selected, two are not; of many a hundred are sampled for each phrase."""
    captions = [UNIQUE, *[RARE] * 3, *[FREQUENT] * 999, UNIQUE]

    result = balance(captions)

    selected = [captions[index] for index in result.selected]
    assert selected.count(RARE) == 3
    assert UNIQUE not in selected
    # Two phrases, 'dog' and 'park', each with a sample of a hundred.
    assert 100 <= selected.count(FREQUENT) <= 200
    before = result.before
    assert (before["dog"], before["zebra"], before["quagga"]) == (999, 3, 2)
    assert result.after["dog"] == result.after["park"] == selected.count(FREQUENT)
    assert list(result.selected) == sorted(result.selected)


def test_the_seed_decides_the_sample() -> None:
    """The same seed gives the same sample, another seed another."""
    captions = [FREQUENT] * 500
    assert balance(captions, seed=1) == balance(captions, seed=1)
    assert balance(captions, seed=1).selected != balance(captions, seed=2).selected


@given(st.lists(st.lists(st.sampled_from(WORDS), max_size=3), max_size=40), st.integers(1, 4))
def test_every_phrase_has_at_least_its_sample(texts: list[list[str]], min_count: int) -> None:
    """Phrases in `min_count` captions or more keep all, or at least `max_per_phrase`; rarer ones select none."""
    limit = 6
    captions = [" and ".join(f"the {word}" for word in words) for words in texts]

    result = balance(captions, min_count=min_count, max_per_phrase=limit)

    frequent = {word for word in WORDS if result.before[word] >= min_count}
    for word in frequent:
        assert result.after[word] >= min(result.before[word], limit)
    eligible = [index for index, words in enumerate(texts) if frequent & set(words)]
    assert set(result.selected) <= set(eligible)
    if all(result.before[word] <= limit for word in WORDS):
        assert list(result.selected) == eligible


def test_the_frequency_bins_add_up() -> None:
    """Each phrase is in one row of the table, with its captions before and after."""
    rng = random.Random(3)
    captions = [f"a {rng.choice(WORDS)} and a {rng.choice(WORDS)}" for _ in range(700)] + [UNIQUE]
    result = balance(captions, max_per_phrase=50)
    rows = result.by_frequency()
    assert sum(row[1] for row in rows) == len(WORDS) + 1
    assert sum(row[2] for row in rows) == result.before.total()
    assert sum(row[3] for row in rows) == result.after.total() < result.before.total()
    assert rows[0] == ("1-2", 1, 1, 0)
    assert rows[4][:2] == ("100-299", 5)


def records(captions: list[str]) -> list[Conversation]:
    """Return a stage-1 record for each caption."""
    return [
        Conversation(str(number), (Turn("user", (ImageRef(f"p/{number}.jpg"), "\nWhat?")), Turn("assistant", (text,))))
        for number, text in enumerate(captions)
    ]  # fmt: skip


def test_a_file_is_balanced(tmp_path: Path) -> None:
    """Selected records are unchanged except for relative image paths; invalid records are listed."""
    file, out = tmp_path / "all.jsonl", tmp_path / "new" / "balanced.json"
    write_conversations(file, records([RARE, UNIQUE, RARE, *[FREQUENT] * 30, RARE]))
    file.write_text(file.read_text() + "{}\n")
    with pytest.raises(InputError, match="field 'conversations' is missing"):
        balance_file(file, out)
    assert not out.exists()

    result = balance_file(file, out, max_per_phrase=5, max_bad_fraction=0.1)

    read = read_conversations(out)
    assert [conversation.id for conversation in read][:2] == ["0", "2"]
    assert read[-1].images == ("../p/33.jpg",)
    assert len(read) == len(result.selected)
    assert (result.total, result.skipped) == (34, 1)
    assert out.with_suffix(".skipped.jsonl").exists()
    with pytest.raises(
        InputError, match=r"no noun phrase of .* is in 99 answers or more; give more"
    ):
        balance_file(file, out, min_count=99, max_bad_fraction=0.1)


def test_real_captions_are_balanced(third_party: Path) -> None:
    """Flickr8k has few concepts: captions with men are sampled, those with rare phrases all selected."""
    import csv

    with (third_party / "flickr8k" / "captions.csv").open(newline="") as file:
        captions = [row["caption"] for row in csv.DictReader(file)]
    result = balance(captions)
    assert len(captions) == 4000
    assert result.before["man"] > 500
    assert result.after["man"] < result.before["man"]
    rare = {phrase: count for phrase, count in result.before.items() if 3 <= count <= 100}
    assert all(result.after[phrase] == count for phrase, count in rare.items())
