"""Captions fall into the words that COCO's evaluation counts."""

import pytest

from caldera.evaluation.caption_metrics import ptb_tokenize


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A dog, on a Beach .", ["a", "dog", "on", "a", "beach"]),
        ("It isn't John's", ["it", "is", "n't", "john", "'s"]),
        ("they'll say we've", ["they", "'ll", "say", "we", "'ve"]),
        ("I cannot see", ["i", "can", "not", "see"]),
        ("a tri-colored T-shirt", ["a", "tri-colored", "t-shirt"]),
        ("at 3:30 o'clock, 1,000 of 2.5", ["at", "3:30", "o'clock", "1,000", "of", "2.5"]),
        ('the "U.S." flag -- 50% & more!', ["the", "u.s.", "flag", "50", "%", "&", "more"]),
        ("mom'for the dogs'", ["mom", "for", "the", "dogs"]),
        ("", []),
        (" .,;!?'\" ", []),
    ],
)
def test_words_of_a_caption(caption: str, words: list[str]) -> None:
    """Lower case; clitics apart; hyphens, numbers and abbreviations whole; no punctuation."""
    assert ptb_tokenize(caption) == words
