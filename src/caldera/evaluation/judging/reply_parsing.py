"""Parse the scores in a judge's reply, or report the rule that the reply breaks.

LLaVA's own script replaces the scores by (-1, -1) if the first line is not exactly two numbers, and averages them;
`parse_pair_as_llava` identifies those replies, and nothing here ever scores them like that.
"""

import math
import re

from caldera.llm_client.client import RejectedReply

LOWEST, HIGHEST = 1.0, 10.0
"""The scale of a pair of scores."""

_NUMBER = r"[-+]?\d+(?:\.\d+)?"
_SCALED = rf"({_NUMBER})(?:\s*/\s*10(?:\.0)?(?![\d.]))?"
"""A score, with or without the scale: '8' or '8/10'."""

_LEAD = r"(?:(?:the\s+)?(?:(?:overall|final)\s+)?(?:scores?|ratings?|correctness)(?:\s+(?:is|are))?\s*[:=]?\s*)?"
_PAIR = re.compile(
    rf"{_LEAD}[(\[]?\s*{_SCALED}(?:\s*[,;&]\s*|\s+and\s+|\s+){_SCALED}\s*[)\]]?\s*\.?",
    re.IGNORECASE,
)
_LABELED = re.compile(rf"\bassistant\s*([12])\s*[:=]\s*{_SCALED}", re.IGNORECASE)
_ONE = re.compile(rf"{_LEAD}({_NUMBER})\s*\.?", re.IGNORECASE)
_REASONING = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)

_ASK_PAIR = (
    "Your scores could not be read. Reply again; the first line must hold nothing but two numbers from 1 to 10 with a "
    "space between them: the score of Assistant 1, then the score of Assistant 2."
)
_ASK_GRADE = "Your grade could not be read. Reply with one number from 0.0 to 1.0 and nothing else."


def parse_score_pair(reply: str) -> tuple[float, float]:
    """Return the scores of Assistant 1 and Assistant 2 from the first line of a reply.

    "8 9", "8, 9", "8.5 9", "Score: 8 9", "8/10 9/10" and "Assistant 1: 8, Assistant 2: 9" are accepted. A lone "8/10"
    is one score, not two.

    Raises:
        RejectedReply: There is no such pair, it is in the wrong order, or a score is not between 1 and 10.
    """
    line = _first_line(reply, _ASK_PAIR)
    labeled = [(label, float(score)) for label, score in _LABELED.findall(line)]
    if [label for label, _ in labeled] == ["2", "1"]:
        raise RejectedReply("scores swapped", _quoted(line), feedback=_ASK_PAIR)
    if [label for label, _ in labeled] == ["1", "2"]:
        first, second = (score for _, score in labeled)
    elif pair := _PAIR.fullmatch(line):
        first, second = float(pair[1]), float(pair[2])
    else:
        raise RejectedReply(_parse_error(line), _quoted(line), feedback=_ASK_PAIR)
    for score in (first, second):
        if not LOWEST <= score <= HIGHEST:
            detail = f"{score:g}, not between {LOWEST:g} and {HIGHEST:g}"
            raise RejectedReply("score out of range", detail, feedback=_ASK_PAIR)
    return first, second


def parse_grade(reply: str) -> float:
    """Return the grade from 0 to 1 that is the whole first line of a reply."""
    line = _first_line(reply, _ASK_GRADE)
    match = _ONE.fullmatch(line)
    if match is None:
        raise RejectedReply("no grade", _quoted(line), feedback=_ASK_GRADE)
    grade = float(match[1])
    if not 0 <= grade <= 1:
        detail = f"{grade:g}, not between 0 and 1"
        raise RejectedReply("grade out of range", detail, feedback=_ASK_GRADE)
    return grade


def parse_pair_as_llava(reply: str) -> tuple[float, float] | None:
    """Return the pair that LLaVA's and Vicuna's scripts parse, None where they would write (-1, -1).

    The first line, with commas replaced by spaces and split at single spaces, must be exactly two numbers; "8, 9" fails
    since it has three parts (llava/eval/eval_gpt_review_bench.py).
    """
    parts = reply.split("\n")[0].replace(",", " ").split(" ")
    try:
        scores = [float(part) for part in parts]
    except ValueError:
        return None
    return (scores[0], scores[1]) if len(scores) == 2 and all(map(math.isfinite, scores)) else None


def without_reasoning(reply: str) -> str:
    """Return a reply without the reasoning between <think> and </think> that some models write before it."""
    text = _REASONING.sub("", reply, count=1)
    if text.lstrip().startswith("<think>"):
        raise RejectedReply("reasoning without an end", "the judge may need a higher max_tokens")
    return text


def _first_line(reply: str, feedback: str) -> str:
    """Return the first line that is not empty, without Markdown for bold or code."""
    lines = (line.strip(" \t*_`#") for line in without_reasoning(reply).splitlines())
    line = next((line for line in lines if line), "")
    if not line:
        raise RejectedReply("empty reply", feedback=feedback)
    return line


def _parse_error(line: str) -> str:
    """Return the rule that a line without a pair breaks."""
    num_scores = len(re.findall(_SCALED, line))
    if num_scores == 0:
        return "no scores in the first line"
    if num_scores == 1:
        return "one score of two"
    return "more than two numbers" if num_scores > 2 else "scores among words"


def _quoted(line: str) -> str:
    return repr(line if len(line) <= 80 else f"{line[:79]}…")
