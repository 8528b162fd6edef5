"""Captions of a simple form are split into subject and predicate; others are left alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caldera.instructions.caption_clauses import parse_clause
from caldera.instructions.caption_words import normalize_caption, word_key


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A young boy rides a skateboard on a trail.", "the boy rides a skateboard on a trail"),
        ("A girl wearing a helmet, holding a bat", "the girl is wearing a helmet, holding a bat"),
        ("SEVERAL PEOPLE STANDING NEAR A METER", "the people are standing near a meter"),
        ("A dog that is looking at a can of food.", "the dog is looking at a can of food"),
        ("A group of men eating bananas", "the men are eating bananas"),
        ("A red stop sign next to a bush", "the stop sign is next to a bush"),
        ("A bike parked under a light", "the bike is parked under a light"),
        ("Black and white cows laying in a barn", "the cows are laying in a barn"),
        ("A boy and girl assembling pizza", "the boy and girl are assembling pizza"),
        ("A man in a hat holding a dog", "the man is holding a dog"),
        ("A cat is eating from a bowl .", "the cat is eating from a bowl"),
    ],
)
def test_a_simple_caption_is_split(caption: str, expected: str) -> None:
    """The subject is named again without adjectives, and a verb is added where the caption has none."""
    clause = parse_clause(normalize_caption(caption))
    assert clause is not None
    assert clause.sentence_about(clause.definite_subject) == expected


@pytest.mark.parametrize(
    "caption",
    [
        "A wooden cutting board",
        "A table set for a meal",
        "A picture of a dog sitting on a bed",
        "A table with people sitting around it",
        "A man carrying a backpack walks in a field",
        "A boy in a blue shirt kicks a ball",
        "She just finished chopping vegetables with the knife",
        "",
        "...",
    ],
)
def test_an_uncertain_caption_is_no_false_statement(caption: str) -> None:
    """What may be attached in two ways has no clause, or one about the right subject."""
    clause = parse_clause(normalize_caption(caption))
    if clause is not None:
        assert clause.sentence_about(clause.definite_subject) == "the boy kicks a ball"


@given(st.text(max_size=80))
def test_any_text_is_parsed(text: str) -> None:
    """No caption breaks the parser, and a predicate is part of its caption."""
    clause = parse_clause(normalize_caption(text))
    assert clause is None or (clause.subject and clause.predicate)


def test_forms_and_synonyms_have_one_key() -> None:
    """Numbers, verb forms and synonyms of COCO's names are the same word."""
    groups = (
        ("sits", "sitting"),
        ("sofa", "couches"),
        ("woman", "people", "boy"),
        ("ocean", "sea"),
    )
    for words in groups:
        assert len({word_key(word) for word in words}) == 1, words
    assert len({word_key(word) for group in groups for word in group}) == len(groups)
