"""Answers take the form in which the official evaluators of VQA compare them, with the oddities of those."""

import json
from pathlib import Path

import pytest

from caldera.evaluation.vqa_accuracy import normalize_submission, normalize_vqa


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes.", "yes"),
        ("the  Red\nDog", "red dog"),
        ("A cat, an owl", "cat owl"),  # a comma with a space beside it leaves none behind
        ("black,white", "black white"),
        ("red/white and blue/ green", "redwhite and blue green"),
        ("1,000", "1000"),
        ("1,000 well-made", "1000 wellmade"),  # a number with a comma changes what other marks do
        ("well-made", "well made"),
        ("$3.50", "$3.50"),
        ("3.", "3"),
        ("no.5", "no.5"),
        ("a.m.", "am"),
        ("12:30", "12:30"),
        ("None", "0"),
        ("twenty two", "twenty 2"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldntve", "couldntve"),
        ("im", "im"),
        ("somebody'd", "somebodyd"),
        ("", ""),
        (" ?! ", ""),
        ("the", ""),
        ("." * 40, "." * 8),  # at most 32 periods go
    ],
)
def test_an_answer_in_the_form_of_vqa_v2(answer: str, expected: str) -> None:
    """Each rule and each oddity, by hand."""
    assert normalize_vqa(answer) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("Macy's", "macy 's"), ("black,white", "blackwhite"), ("1,000 well-made", "1000 well made")],
)
def test_evalai_cuts_possessives_and_commas_first(answer: str, expected: str) -> None:
    """So it differs from VQA v2's own evaluator."""
    assert normalize_submission(answer) == expected
    assert normalize_vqa(answer) != expected


def test_normalizing_leaves_nothing_behind() -> None:
    """A word that was met once is treated the same later, as the tables never change."""
    first = [normalize_vqa(word) for word in ("one", "onion", "a", "none")]
    assert [normalize_vqa(word) for word in ("one", "onion", "a", "none")] == first


def test_a_thousand_real_answers_come_out_as_officially(third_party: Path) -> None:
    """Raw answers beside what the official processor made of each."""
    lines = (third_party / "vqa_normalisation" / "pairs_1000.jsonl").read_text("utf-8").splitlines()
    pairs = [json.loads(line) for line in lines]
    assert len(pairs) == 1000
    assert [normalize_submission(pair["raw"]) for pair in pairs] == [
        pair["normalised"] for pair in pairs
    ]
