"""Caption metrics: tokens, BLEU, CIDEr-D and ROUGE-L, each worked by hand and on the papers' examples."""

import math

import pytest

from caldera.evaluation.caption_metrics import (
    bleu,
    cider_d,
    mean_rouge_l,
    ptb_tokenize,
    rouge_l,
)

REFERENCES = {
    "1": ["a dog on a beach", "a dog runs on the sand"],
    "2": ["two cats in a room", "cats sleep in a room"],
    "3": ["a red car", "a car on a street"],
}


@pytest.mark.parametrize(
    ("caption", "tokens"),
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
def test_tokens_of_a_caption(caption: str, tokens: list[str]) -> None:
    """Lower case; clitics separated; hyphenated words, numbers and abbreviations as one; no punctuation."""
    assert ptb_tokenize(caption) == tokens


def test_bleu_of_the_papers_example_clips_repetition() -> None:
    """Papineni et al., section 2.1: of seven words "the", two count, since one reference has it twice."""
    candidates = {"1": "the the the the the the the"}
    references = {"1": ["The cat is on the mat.", "There is a cat on the mat."]}
    assert bleu(candidates, references)[0] == pytest.approx(2 / 7)


def test_bleu_adds_counts_over_images_before_dividing() -> None:
    """By hand: 3 + 1 of 3 + 2 words and 2 + 0 of 2 + 1 pairs match; 5 words against 3 + 4 are too few."""
    candidates = {"1": "a red dog", "2": "two cats"}
    references = {"1": ["a red dog"], "2": ["there are two birds", "x"]}
    brevity = math.exp(1 - 7 / 5)
    bleu_1, bleu_2, bleu_3, bleu_4 = bleu(candidates, references)
    # "x" is nearer in length to "two cats" than four words are: 3 + 1 words are expected.
    assert bleu_1 == pytest.approx(4 / 5)
    assert bleu_2 == pytest.approx(math.sqrt(4 / 5 * 2 / 3))
    assert bleu_3 == pytest.approx((4 / 5 * 2 / 3 * 1 / 1) ** (1 / 3))
    # Zero of zero counts as 1e-15 of 1e-9.
    assert bleu_4 == pytest.approx((4 / 5 * 2 / 3 * 1e-6) ** (1 / 4))
    references["2"] = ["there are two birds"]
    assert bleu(candidates, references)[0] == pytest.approx(brevity * 4 / 5)


def test_bleu_uses_the_shorter_of_two_equally_near_references() -> None:
    """Three words between two and four: no brevity penalty."""
    assert bleu({"1": "a b c"}, {"1": ["a b c d", "a b"]})[0] == pytest.approx(1)


def test_bleu_of_an_empty_caption_is_zero() -> None:
    """There is no division by zero."""
    assert bleu({"1": ""}, {"1": ["a dog"]}) == pytest.approx([0, 0, 0, 0])


def test_cider_d_of_one_word_worked_by_hand() -> None:
    """One-word captions: only 1-grams count, so the score is 10/4 times the cosine, which is 1 or 0."""
    references = {"1": ["dog"], "2": ["cat"]}
    assert cider_d({"1": "dog", "2": "cat"}, references) == pytest.approx(2.5)
    assert cider_d({"1": "dog", "2": "dog"}, references) == pytest.approx(1.25)


def test_cider_d_of_two_words_worked_by_hand() -> None:
    """Clipped products of idf weights over norms, with the length penalty."""
    references = {"1": ["red dog"], "2": ["red cat"], "3": ["boat"]}
    red, dog = math.log(3 / 2), math.log(3)
    unigrams = red * red / (red * math.hypot(red, dog))
    expected = 10 / 4 * unigrams * math.exp(-1 / (2 * 36))
    scores = cider_d({"1": "red", "2": "red cat", "3": "boat"}, references)
    two_words = 10 / 4 * 2
    assert scores == pytest.approx((expected + two_words + 2.5) / 3)


def test_cider_d_of_human_captions_is_highest() -> None:
    """A reference scores above a changed one, which scores above that of another image."""
    reference = cider_d({key: texts[0] for key, texts in REFERENCES.items()}, REFERENCES)
    changed = cider_d({"1": "a dog", "2": "two cats", "3": "a red bus"}, REFERENCES)
    shuffled = cider_d(
        {"1": "two cats in a room", "2": "a red car", "3": "a dog on a beach"}, REFERENCES
    )
    assert reference > changed > shuffled


def test_cider_d_penalizes_repetition() -> None:
    """The D variant clips repeated n-grams and penalizes length."""
    once = cider_d({"1": "a dog", "2": "x", "3": "x"}, REFERENCES)
    often = cider_d({"1": "a dog dog dog dog dog dog", "2": "x", "3": "x"}, REFERENCES)
    assert often < once


def test_cider_d_of_an_empty_caption_is_zero() -> None:
    """There is no division by zero."""
    assert cider_d(dict.fromkeys(REFERENCES, ""), REFERENCES) == 0


def test_rouge_l_of_the_papers_example() -> None:
    """Lin, section 3.1: "police kill the gunman" shares three words in order with "police killed the gunman"."""
    assert rouge_l("police kill the gunman", ["police killed the gunman"]) == pytest.approx(3 / 4)


def test_rouge_l_precision_and_recall_may_come_from_two_references() -> None:
    """By hand: the first has precision 2/2 and recall 2/5, the second 1/2 and 1/1."""
    score = (1 + 1.44) * 1 * 1 / (1 + 1.44 * 1)
    assert rouge_l("red dog", ["a red and big dog", "red"]) == pytest.approx(score)


def test_rouge_l_weights_recall_more() -> None:
    """By hand: precision 1, recall 1/2, beta 1.2."""
    expected = 2.44 * 1 * 0.5 / (0.5 + 1.44 * 1)
    assert rouge_l("a dog", ["a dog runs fast"]) == pytest.approx(expected)


def test_rouge_l_depends_on_order() -> None:
    """Swapping two words leaves a subsequence of one."""
    assert rouge_l("dog red", ["red dog"]) == pytest.approx(1 / 2)


def test_mean_rouge_l_is_over_images() -> None:
    """One exact caption and one empty one."""
    assert mean_rouge_l({"1": "a dog", "2": ""}, {"1": ["a dog"], "2": ["x"]}) == pytest.approx(0.5)
    assert rouge_l("", [""]) == 0
