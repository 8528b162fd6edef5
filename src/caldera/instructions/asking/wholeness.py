"""Exchanges in, the first that is no whole text of its own: too short, broken off, going in circles, or copied.

The bounds are set by texts that are known to be good: in the ninety answers that GPT-4 wrote for LLaVA-Bench (COCO) at
most 3 % of the runs of four words come again, and of its thirty descriptions at least 71 % of the words stand outside
runs of four from the picture's captions.
"""

import re
from collections import Counter
from collections.abc import Sequence
from unicodedata import category

from caldera.instructions.asking.parsing import ReplyRefusal
from caldera.instructions.teacher import Exchange, Kind

_ENDS = re.compile(r"""[.!?…。！？:;"'”’)\]*`]\s*\Z""")  # noqa: RUF001 - Chinese signs
_LISTED = re.compile(r"\A\s*(?:[-*•]|\d+[.)])\s")

_LONG = 20
"""Words from which an answer must end as sentences do."""

_SHORTEST = 8
"""Words that a description has at least (16 characters in Chinese)."""

_TELLING = 6
"""Words (or Chinese characters) from which a sentence said twice is a circle and not an idiom."""

_RUN = 4
"""Words of the runs that are counted to find circles and pasted captions."""

_AGAIN, _SOME = 0.15, 40
"""Share of runs that come again from which a text is a circle, in texts of so many words."""

_OWN = 0.5
"""Share of a description's words that have to be its own."""

_COPIED = 10
"""Words in a row that nobody shares with a worked example by chance."""

_SEVERAL = re.compile(
    r"\b(?:pictures|images|photos|scenes|both|neither|of them|in common|differ\w*)\b"
    r"|\bwhich (?:one|picture|image|photo|scene)\b|都|哪|每|两|共同|不同|相同",
    re.IGNORECASE,
)
"""Words that speak of several pictures at once."""

_LETTERS = re.compile(
    r"(?<![A-Za-z])[B-H](?![A-Za-z])"
    r"|(?:(?<=[a-z,;] )|(?<=[图片和与、]))A(?![A-Za-z])"
    r"|(?<![A-Za-z])A(?= (?:and|or|is|shows|has|does)\b|\s?[、和与中里比])"
)
"""The letters of pictures; 'A' where it can be no article, as those in the middle of a sentence are small."""


def check_end(kind: Kind, answer: str) -> None:
    """Check that an answer is long enough and has an end.

    Raises:
        ReplyRefusal: It is too short for a description, or breaks off.
    """
    words = len(answer.split())
    wide = sum(ord(char) >= 0x2E80 for char in answer)
    if kind == "detail" and words < _SHORTEST and wide < 2 * _SHORTEST:
        raise ReplyRefusal(
            "too short",
            f"{words} words",
            repair="That is too short. Describe the picture in detail.",
        )
    last = answer.rstrip().rsplit("\n", 1)[-1]
    ended = _ENDS.search(answer) or _LISTED.match(last) or category(last[-1:] or " ") == "So"
    if max(words, wide // 2) >= _LONG and not ended:
        raise ReplyRefusal("breaks off", f"it ends with {answer[-30:]!r}")


def check_circles(exchanges: Sequence[Exchange]) -> None:
    """Check that no question is asked twice, no sentence of some length said twice, and that no answer goes round.

    Raises:
        ReplyRefusal: Something is; small models go in circles until they are cut off.
    """
    asked = Counter(" ".join(words_of(each.question)) for each in exchanges)
    for question, times in asked.items():
        if times > 1:
            raise ReplyRefusal("circles", f"it asks {times} times: {question[:60]!r}")
    said = Counter(
        sentence
        for each in exchanges
        for part in re.split(r"(?<=[.!?。！？])\s*|\n+", each.answer)  # noqa: RUF001 - Chinese signs
        if len(sentence := words_of(part)) >= _TELLING
    )
    for sentence, times in said.items():
        if times > 1:
            raise ReplyRefusal("circles", f"it says {times} times: {' '.join(sentence)[:60]!r}")
    for each in exchanges:
        runs = _runs(each.answer, _RUN)
        again = 1 - len(set(runs)) / len(runs) if len(runs) >= _SOME else 0.0
        if again > _AGAIN:
            raise ReplyRefusal("circles", f"{again:.0%} of all runs of {_RUN} words come again")


def check_own_words(answer: str, captions: str) -> None:
    """Check that a description is more than its picture's captions, one after the other.

    Raises:
        ReplyRefusal: Less than half of its words are its own.
    """
    known = _runs_in(captions, _RUN)
    words = words_of(answer)
    pasted = {
        at + step
        for at, run in enumerate(_runs(answer, _RUN))
        if run in known
        for step in range(_RUN)
    }
    if words and 1 - len(pasted) / len(words) < _OWN:
        raise ReplyRefusal(
            "pasted",
            f"{len(pasted)} of {len(words)} words stand in the captions in the same order",
            repair="You repeated what you were given. Describe the picture in words of your own, with places.",
        )


def check_several(exchanges: Sequence[Exchange]) -> None:
    """Check that each exchange calls two pictures by letter, or speaks of several at once.

    Raises:
        ReplyRefusal: One speaks of one picture alone.
    """
    for each in exchanges:
        text = f"{each.question}\n{each.answer}"
        letters = {"A" if "A" in found[0] else found[0] for found in _LETTERS.finditer(text)}
        if len(letters) < 2 and not _SEVERAL.search(text):
            raise ReplyRefusal(
                "one picture",
                f"{each.question[:60]!r} needs one picture alone",
                repair="Each question must need at least two of the pictures. Write it all again; call them by letter.",
            )


class Examples:
    """Knows what a teacher was shown, and finds what was copied from it."""

    def __init__(self, system: str, texts: Sequence[str]) -> None:
        """Take the system message, whose lines show the form, and the examples' pictures and replies."""
        self._lines = {words_of(line) for line in system.split("\n")} - {()}
        self._runs = {run for text in texts for run in _runs(text, _COPIED)}

    def check(self, texts: Sequence[str], captions: str) -> None:
        """Check that nothing of some length was copied, other than the picture's own captions, and no placeholder.

        Raises:
            ReplyRefusal: A text is a line of the system message, or a run of words stands in an example too.
        """
        for text in texts:
            if words_of(text) in self._lines:
                raise ReplyRefusal("placeholder", f"it says {text[:40]!r}")
        known = _runs_in(captions, _COPIED)
        for text in texts:
            for run in _runs(text, _COPIED):
                if run in self._runs and run not in known:
                    raise ReplyRefusal(
                        "example",
                        f"it copies {' '.join(run)!r} from a worked example",
                        repair="You copied from an example. Write all of it again, about this picture alone.",
                    )


def _runs_in(captions: str, length: int) -> set[tuple[str, ...]]:
    """Return the runs of so many words that stand in captions, each a line."""
    return {run for caption in captions.split("\n") for run in _runs(caption, length)}


def words_of(text: str) -> tuple[str, ...]:
    """Return the words of a text in lower case; each Chinese character is one."""
    return tuple(re.findall(r"[\u2e80-\uffff]|[^\W_\u2e80-\uffff]+", text.casefold()))


def _runs(text: str, length: int) -> list[tuple[str, ...]]:
    """List all runs of so many words."""
    words = words_of(text)
    return [words[at : at + length] for at in range(len(words) - length + 1)]
