"""Balancing by the paper's rule: what stays and why, against a plain reading of the rule."""

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

RARE, FREQUENT, LONE = "A zebra in a field.", "A dog in a park.", "A quagga."
WORDS = ("dog", "cat", "fog", "cup", "kite")


def test_rare_captions_stay_and_frequent_ones_are_thinned() -> None:
    """Three of a kind stay, two do not; of many about the same, a hundred are drawn for each phrase."""
    captions = [LONE, *[RARE] * 3, *[FREQUENT] * 999, LONE]

    done = balance(captions)

    kept = [captions[place] for place in done.kept]
    assert kept.count(RARE) == 3
    assert LONE not in kept
    assert (
        100 <= kept.count(FREQUENT) <= 200
    )  # two phrases, 'dog' and 'park', each with its hundred
    assert (done.before["dog"], done.before["zebra"], done.before["quagga"]) == (999, 3, 2)
    assert done.after["dog"] == done.after["park"] == kept.count(FREQUENT)
    assert list(done.kept) == sorted(done.kept)


def test_the_seed_decides_which_are_drawn() -> None:
    """The same seed draws the same, another one others."""
    captions = [FREQUENT] * 500
    assert balance(captions, seed=1) == balance(captions, seed=1)
    assert balance(captions, seed=1).kept != balance(captions, seed=2).kept


@given(st.lists(st.lists(st.sampled_from(WORDS), max_size=3), max_size=40), st.integers(1, 4))
def test_every_phrase_has_what_the_rule_grants_it(said: list[list[str]], least: int) -> None:
    """Of a phrase in `least` to `most` captions all stay; of one in more, `most` at least; others bring none in."""
    most = 6
    captions = [" and ".join(f"the {word}" for word in words) for words in said]

    done = balance(captions, least=least, most=most)

    granted = {word for word in WORDS if done.before[word] >= least}
    for word in granted:
        assert done.after[word] >= min(done.before[word], most)
    places = [place for place, words in enumerate(said) if granted & set(words)]
    assert set(done.kept) <= set(places)
    if all(done.before[word] <= most for word in WORDS):
        assert list(done.kept) == places


def test_the_bands_add_up() -> None:
    """Each phrase is in one row of the table, with its captions before and after."""
    rng = random.Random(3)
    captions = [f"a {rng.choice(WORDS)} and a {rng.choice(WORDS)}" for _ in range(700)] + [LONE]
    done = balance(captions, most=50)
    rows = done.by_frequency()
    assert sum(row[1] for row in rows) == len(WORDS) + 1
    assert sum(row[2] for row in rows) == done.before.total()
    assert sum(row[3] for row in rows) == done.after.total() < done.before.total()
    assert rows[0] == ("1-2", 1, 1, 0)
    assert rows[4][:2] == ("100-299", 5)


def records(captions: list[str]) -> list[Conversation]:
    """A stage-1 record for each caption."""
    return [
        Conversation(str(at), (Turn("user", (ImageRef(f"p/{at}.jpg"), "\nWhat?")), Turn("assistant", (text,))))
        for at, text in enumerate(captions)
    ]  # fmt: skip


def test_a_file_is_balanced_whole(tmp_path: Path) -> None:
    """The kept records stay as they are, their images found from the new place; bad ones are listed."""
    file, out = tmp_path / "all.jsonl", tmp_path / "new" / "balanced.json"
    write_conversations(file, records([RARE, LONE, RARE, *[FREQUENT] * 30, RARE]))
    file.write_text(file.read_text() + "{}\n")
    with pytest.raises(InputError, match="field 'id' is missing"):
        balance_file(file, out)
    assert not out.exists()

    done = balance_file(file, out, most=5, max_bad=0.1)

    read = read_conversations(out)
    assert [one.id for one in read][:2] == ["0", "2"]
    assert read[-1].images == ("../p/33.jpg",)
    assert len(read) == len(done.kept)
    assert (done.total, done.bad) == (34, 1)
    assert out.with_suffix(".bad.jsonl").exists()
    with pytest.raises(
        InputError, match=r"no noun phrase of .* is in 99 answers or more; give more"
    ):
        balance_file(file, out, least=99, max_bad=0.1)


def test_real_captions_are_thinned(third_party: Path) -> None:
    """Flickr8k has few concepts: dogs and men are thinned to near a hundred each, rare phrases stay."""
    import csv

    with (third_party / "flickr8k" / "captions.csv").open(newline="") as file:
        captions = [row["caption"] for row in csv.DictReader(file)]
    done = balance(captions)
    assert len(captions) == 4000
    assert done.before["man"] > 500
    assert done.after["man"] < done.before["man"]
    assert all(done.after[phrase] == count for phrase, count in done.before.items() if 3 <= count <= 100)  # fmt: skip
