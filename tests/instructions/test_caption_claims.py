"""What captions deny is told from what they state, and what is no statement is found."""

import pytest

from caldera.instructions.caption_claims import is_statement, split_claims
from caldera.instructions.caption_words import content_words


@pytest.mark.parametrize(
    ("caption", "stated"),
    [
        ("A man rides a horse.", "man rides horse"),
        ("There is no dog on the couch.", ""),
        ("No dog sits on the couch", ""),
        ("A man without a hat rides a horse", "man rides horse"),
        ("A man w/o a hat", "man"),
        ("A man with no hat or gloves and a surfboard", "man surfboard"),
        ("Two men wearing no hats on a beach", "men beach"),
        ("A street empty of cars near a park", "street park"),
        ("A bird flying without touching the water", "bird flying"),
        ("A dog isn't sitting on the grass", "dog"),
        ("A dog does n\N{RIGHT SINGLE QUOTATION MARK}t run", "dog"),
        ("a dog doesnt run", "dog"),
        ("A dog never runs, a cat does", "dog cat"),
        ("There are no dogs, cats or birds here", ""),
        ("Nobody is on the bench", ""),
        ("Nothing on the table but a cup", "cup"),
        ("neither a dog nor a cat, but a bird", "bird"),
        ("The dog is not there, the cat is", "cat"),
        ("The dog is nowhere to be seen", ""),
        ("The dog is missing", ""),
        ("A man missing a shoe on a street", "man street"),
        ("A cat instead of a dog on a bed", "cat bed"),
        ("Not only a dog but a cat", "dog cat"),
        ("Is this a dog?", ""),
    ],
)
def test_what_is_denied_is_not_stated(caption: str, stated: str) -> None:
    """By every kind of negation, to the end of the noun phrase or the clause; a question states nothing."""
    claims = split_claims(caption)
    assert " ".join(content_words(claims.stated)) == stated
    assert (claims.stated == caption) == bool(stated and not claims.denied)


@pytest.mark.parametrize(
    "caption",
    ["A dog and", "A dog and a.", "A group of", "A group of of dogs", "a dog on on a bed", "the a dog", "What is it?"],
)  # fmt: skip
def test_fragments_and_questions_are_no_statements(caption: str) -> None:
    """A sentence does not end in a conjunction, an article or 'of', and repeats none of them."""
    assert not is_statement(caption)


@pytest.mark.parametrize(
    "caption",
    ["A soda can", "A dog running outside", "People look at each other.", "A man, who is tall, and a dog", "Ein Hund"],
)  # fmt: skip
def test_whole_captions_are_statements(caption: str) -> None:
    """Also those that end in another function word."""
    assert is_statement(caption)
