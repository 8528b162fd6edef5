"""Parsing of a judge's reply: two scores, one grade, or the name of the rule that it breaks."""

import json
from pathlib import Path

import pytest

from caldera.evaluation.judging.reply_parsing import (
    parse_grade,
    parse_pair_as_llava,
    parse_score_pair,
)
from caldera.llm_client.client import RejectedReply


@pytest.mark.parametrize(
    ("reply", "scores"),
    [
        ("8 9", (8, 9)),
        ("8 9\nBoth answers are good.", (8, 9)),
        ("8, 9", (8, 9)),
        ("8.5 9", (8.5, 9)),
        ("Score: 8 9", (8, 9)),
        ("Scores: 8, 9.", (8, 9)),
        ("The scores are 7 and 10", (7, 10)),
        ("8/10 9/10", (8, 9)),
        ("(8, 9)", (8, 9)),
        ("**8 9**", (8, 9)),
        ("\n\n  8   9  \nBecause.", (8, 9)),
        ("Assistant 1: 8, Assistant 2: 9", (8, 9)),
        ("Assistant 1: 8/10; Assistant 2: 9/10", (8, 9)),
        ("<think>Perhaps 1 1?</think>\n8 9\nWhy.", (8, 9)),
        ("10 1", (10, 1)),
    ],
)
def test_pairs_in_many_notations_are_parsed(reply: str, scores: tuple[float, float]) -> None:
    """Two scores, the first assistant's first, on the first line that is not empty."""
    assert parse_score_pair(reply) == scores


@pytest.mark.parametrize(
    ("reply", "rule"),
    [
        ("", "empty reply"),
        ("  \n ", "empty reply"),
        ("8/10", "one score of two"),
        ("8", "one score of two"),
        ("Score: 8", "one score of two"),
        ("8 9 7", "more than two numbers"),
        ("0 9", "score out of range"),
        ("8 11", "score out of range"),
        ("-1 -1", "score out of range"),
        ("80 90", "score out of range"),
        ("Assistant 2: 9, Assistant 1: 8", "scores swapped"),
        ("First, let me solve the problem.\n8 9", "no scores in the first line"),
        ("I cannot judge this.", "no scores in the first line"),
        ("I give the first 8 and the second 9", "scores among words"),
        ("8-9", "scores among words"),
        ("8/9", "scores among words"),
        ("nan 9", "one score of two"),
        ("<think>I wonder about 8 9", "reasoning without an end"),
    ],
)
def test_other_replies_are_rejected_with_the_rule(reply: str, rule: str) -> None:
    """Each fault has its rule; "8/10" is one score with its scale, not a pair of scores."""
    with pytest.raises(RejectedReply) as caught:
        parse_score_pair(reply)
    assert caught.value.rule == rule


@pytest.mark.parametrize(
    ("reply", "grade"), [("0.7", 0.7), ("1", 1), ("0.0", 0), ("Grade", None), ("Correctness: 0.3", 0.3),
    ("8/10", None), ("1.1", None), ("-0.1", None), ("0.5 0.6", None), ("", None), ("about 0.5", None)],
)  # fmt: skip
def test_a_grade_is_one_number_from_0_to_1(reply: str, grade: float | None) -> None:
    """Nothing else is a grade."""
    if grade is not None:
        assert parse_grade(reply) == grade
        return
    with pytest.raises(RejectedReply, match=r"no grade|grade out of range|empty reply"):
        parse_grade(reply)


@pytest.mark.parametrize(
    ("reply", "scores"),
    [("8 9\nGood.", (8, 9)), ("8,9", (8, 9)), ("8, 9", None), ("Score: 8 9", None), ("", None), ("nan 9", None)],
)  # fmt: skip
def test_the_official_rule_is_reproduced(reply: str, scores: tuple[float, float] | None) -> None:
    """The official script drops "8, 9", as the comma, replaced by a space, leaves an empty part."""
    assert parse_pair_as_llava(reply) == scores


def test_vicunas_reviews_are_parsed_except_for_the_known_ones(third_party: Path) -> None:
    """Of Vicuna's reviews twelve begin with a solution instead of scores: questions 68, 69, 70 in each of four files.

    These three are mathematics: the judge solves the problem itself before it scores, and names its scores in the last
    lines, in words of its own. Their official scores were set some other way: for question 70 of the file on Bard 2 is
    stored where the text says 4. Two of the four files are here, so six of the twelve.
    """
    unparsed, rules, total = set(), set(), 0
    for path in sorted((third_party / "judge_reviews").glob("*.jsonl")):
        for line in path.read_text().splitlines():
            review = json.loads(line)
            total += 1
            try:
                pair = parse_score_pair(review["text"])
            except RejectedReply as rejection:
                rules.add(rejection.rule)
                assert parse_pair_as_llava(review["text"]) is None
                unparsed.add((path.name.split("_")[1], review["question_id"]))
            else:
                assert [*pair] == review["score"]
                assert parse_pair_as_llava(review["text"]) == pair
    assert total == 160
    assert rules == {"no scores in the first line"}
    assert unparsed == {
        (name, number) for name in ("alpaca-13b", "bard") for number in (68, 69, 70)
    }
