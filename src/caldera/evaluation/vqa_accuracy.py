"""An answer and what several people said in, VQA's soft accuracy out: how many of them agree.

Agrawal et al., VQA (arXiv 1505.00468): an answer that three people gave is right. So that people and machines
can be compared, each person is left out once and the mean is taken ("10 choose 9"). With ten people that makes 0, 0.3,
0.6, 0.9 and 1 for none, one, two, three and more that agree.

The three benchmarks differ in what is put into a common form before.
"""

from collections.abc import Callable, Sequence

from caldera.evaluation.vqa_normalization import normalize_submission, normalize_vqa, one_line

SoftAccuracy = Callable[[str, Sequence[str]], float]
"""What an answer is worth, between 0 and 1, beside what people said."""

_FULL_AGREEMENT = 3
"""People that have to agree."""


def vqa_soft_accuracy(answer: str, said: Sequence[str]) -> float:
    """Score an answer as VQA v2's evaluator does.

    It brings answers into their common form only where people disagree. Where all said the same, an answer has to be
    that to the letter: "Yes." is wrong where ten people said "yes".
    """
    lines = [one_line(one) for one in said]
    if len(set(lines)) == 1:
        return _agreement(one_line(answer), lines)
    return _agreement(normalize_vqa(answer), _each(normalize_vqa, lines))


def m4c_soft_accuracy(answer: str, said: Sequence[str]) -> float:
    """Score an answer as TextVQA's M4C evaluator does: both sides through EvalAI's processor."""
    return _agreement(normalize_submission(answer), _each(normalize_submission, said))


def vizwiz_soft_accuracy(answer: str, said: Sequence[str]) -> float:
    """Score an answer as VizWiz's evaluator does: what people said stays as the file has it."""
    return _agreement(normalize_vqa(answer), said)


def _each(form: Callable[[str], str], said: Sequence[str]) -> list[str]:
    """Put what people said into form, what several said once."""
    forms = {one: form(one) for one in set(said)}
    return [forms[one] for one in said]


def _agreement(answer: str, said: Sequence[str]) -> float:
    """Return min(1, agreeing / 3), averaged over leaving out each person once."""
    agreeing = sum(one == answer for one in said)
    without_one = min(1.0, (agreeing - 1) / _FULL_AGREEMENT)
    with_all = min(1.0, agreeing / _FULL_AGREEMENT)
    return (agreeing * without_one + (len(said) - agreeing) * with_all) / len(said)
