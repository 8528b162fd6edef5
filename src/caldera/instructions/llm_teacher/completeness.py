"""Exchanges in, the first that is no whole text of its own: too short, broken off, going in circles, or copied.

The bounds are set by texts that are known to be good: in the ninety answers that GPT-4 wrote for LLaVA-Bench (COCO) at
most 3 % of the runs of four words come again, and of its thirty descriptions at least 71 % of the words stand outside
runs of four from the image's captions.
"""

import re
from collections import Counter
from collections.abc import Sequence
from unicodedata import category

from caldera.instructions.dialogues import Exchange, Kind
from caldera.llm_client.client import RejectedReply

_ENDS = re.compile(r"""[.!?…。！？:;"'”’)\]*`]\s*\Z""")  # noqa: RUF001 - Chinese signs
_LISTED = re.compile(r"\A\s*(?:[-*•]|\d+[.)])\s")

_MIN_LONG_ANSWER = 20
"""Words from which an answer must end as sentences do."""

_MIN_DESCRIPTION = 8
"""Words that a description has at least (16 characters in Chinese)."""

_MIN_SENTENCE_WORDS = 6
"""Words (or Chinese characters) from which a sentence said twice is a circle and not an idiom."""

_NGRAM = 4
"""Words of the runs that are counted to find circles and pasted captions."""

_MAX_REPEATED, _MIN_NGRAMS = 0.15, 40
"""Share of runs that come again from which a text is a circle, in texts of so many words."""

_MIN_ORIGINAL = 0.5
"""Share of a description's words that have to be its own."""

_COPIED_NGRAM = 10
"""Words in a row that nobody shares with a worked example by chance."""

_SEVERAL = re.compile(
    r"\b(?:pictures|images|photos|scenes|both|neither|of them|in common|differ\w*)\b"
    r"|\bwhich (?:one|picture|image|photo|scene)\b|都|哪|每|两|共同|不同|相同",
    re.IGNORECASE,
)
"""Words that speak of several images at once."""

_LETTERS = re.compile(
    r"(?<![A-Za-z])[B-H](?![A-Za-z])"
    r"|(?:(?<=[a-z,;] )|(?<=[图片和与、]))A(?![A-Za-z])"
    r"|(?<![A-Za-z])A(?= (?:and|or|is|shows|has|does)\b|\s?[、和与中里比])"
)
"""The letters of images; 'A' where it can be no article, as those in the middle of a sentence are small."""


def check_complete(kind: Kind, answer: str) -> None:
    """Check that an answer is long enough and has an end.

    Raises:
        ReplyRefusal: It is too short for a description, or breaks off.
    """
    words = len(answer.split())
    wide = sum(ord(char) >= 0x2E80 for char in answer)
    if kind == "detail" and words < _MIN_DESCRIPTION and wide < 2 * _MIN_DESCRIPTION:
        raise RejectedReply(
            "too short",
            f"{words} words",
            feedback="That is too short. Describe the image in detail.",
        )
    last = answer.rstrip().rsplit("\n", 1)[-1]
    ended = _ENDS.search(answer) or _LISTED.match(last) or category(last[-1:] or " ") == "So"
    if max(words, wide // 2) >= _MIN_LONG_ANSWER and not ended:
        raise RejectedReply("breaks off", f"it ends with {answer[-30:]!r}")


def check_repetition(exchanges: Sequence[Exchange]) -> None:
    """Check that no question is asked twice, no sentence of some length said twice, and that no answer goes round.

    Raises:
        ReplyRefusal: Something is; small models go in circles until they are cut off.
    """
    asked = Counter(" ".join(word_tokens(each.question)) for each in exchanges)
    for question, times in asked.items():
        if times > 1:
            raise RejectedReply("circles", f"it asks {times} times: {question[:60]!r}")
    said = Counter(
        sentence
        for each in exchanges
        for part in re.split(r"(?<=[.!?。！？])\s*|\n+", each.answer)  # noqa: RUF001 - Chinese signs
        if len(sentence := word_tokens(part)) >= _MIN_SENTENCE_WORDS
    )
    for sentence, times in said.items():
        if times > 1:
            raise RejectedReply("circles", f"it says {times} times: {' '.join(sentence)[:60]!r}")
    for each in exchanges:
        runs = _ngrams(each.answer, _NGRAM)
        again = 1 - len(set(runs)) / len(runs) if len(runs) >= _MIN_NGRAMS else 0.0
        if again > _MAX_REPEATED:
            raise RejectedReply("circles", f"{again:.0%} of all runs of {_NGRAM} words come again")


def check_not_copied(answer: str, captions: str) -> None:
    """Check that a description is more than its image's captions, one after the other.

    Raises:
        ReplyRefusal: Less than half of its words are its own.
    """
    known = _caption_ngrams(captions, _NGRAM)
    words = word_tokens(answer)
    pasted = {
        at + step
        for at, run in enumerate(_ngrams(answer, _NGRAM))
        if run in known
        for step in range(_NGRAM)
    }
    if words and 1 - len(pasted) / len(words) < _MIN_ORIGINAL:
        raise RejectedReply(
            "pasted",
            f"{len(pasted)} of {len(words)} words stand in the captions in the same order",
            feedback="You repeated what you were given. Describe the image in words of your own, with places.",
        )


def check_uses_several_images(exchanges: Sequence[Exchange]) -> None:
    """Check that each exchange calls two images by letter, or speaks of several at once.

    Raises:
        ReplyRefusal: One speaks of one image alone.
    """
    for each in exchanges:
        text = f"{each.question}\n{each.answer}"
        letters = {"A" if "A" in found[0] else found[0] for found in _LETTERS.finditer(text)}
        if len(letters) < 2 and not _SEVERAL.search(text):
            raise RejectedReply(
                "one image",
                f"{each.question[:60]!r} needs one image alone",
                feedback="Each question must need at least two of the images. Write it all again; call them by letter.",
            )


class CopiedExampleCheck:
    """Knows what a teacher was shown, and finds what was copied from it."""

    def __init__(self, system: str, texts: Sequence[str]) -> None:
        """Take the system message, whose lines show the form, and the examples' images and replies."""
        self._lines = {word_tokens(line) for line in system.split("\n")} - {()}
        self._runs = {run for text in texts for run in _ngrams(text, _COPIED_NGRAM)}

    def check(self, texts: Sequence[str], captions: str) -> None:
        """Check that nothing of some length was copied, other than the image's own captions, and no placeholder.

        Raises:
            ReplyRefusal: A text is a line of the system message, or a run of words stands in an example too.
        """
        for text in texts:
            if word_tokens(text) in self._lines:
                raise RejectedReply("placeholder", f"it says {text[:40]!r}")
        known = _caption_ngrams(captions, _COPIED_NGRAM)
        for text in texts:
            for run in _ngrams(text, _COPIED_NGRAM):
                if run in self._runs and run not in known:
                    raise RejectedReply(
                        "example",
                        f"it copies {' '.join(run)!r} from a worked example",
                        feedback="You copied from an example. Write all of it again, about this image alone.",
                    )


def _caption_ngrams(captions: str, length: int) -> set[tuple[str, ...]]:
    """Return the runs of so many words that stand in captions, each a line."""
    return {run for caption in captions.split("\n") for run in _ngrams(caption, length)}


def word_tokens(text: str) -> tuple[str, ...]:
    """Return the words of a text in lower case; each Chinese character is one."""
    return tuple(re.findall(r"[\u2e80-\uffff]|[^\W_\u2e80-\uffff]+", text.casefold()))


def _ngrams(text: str, length: int) -> list[tuple[str, ...]]:
    """List all runs of so many words."""
    words = word_tokens(text)
    return [words[at : at + length] for at in range(len(words) - length + 1)]
