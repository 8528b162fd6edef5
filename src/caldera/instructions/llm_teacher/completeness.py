"""Checks that an answer is a complete text: long enough, not truncated, not repetitive, not copied.

The limits are set by texts that are known to be good: in the ninety answers that GPT-4 wrote for LLaVA-Bench (COCO)
at most 3 % of the 4-grams are repeated, and of its thirty descriptions at least 71 % of the words are outside 4-grams
of the image's captions.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from unicodedata import category

from caldera.instructions.dialogues import Exchange, Kind
from caldera.instructions.llm_teacher.prompts import TeacherPrompt
from caldera.llm_client.client import RejectedReply

_END = re.compile(r"""[.!?…。！？:;"'”’)\]*`]\s*\Z""")  # noqa: RUF001 - Chinese punctuation
_LIST_ITEM = re.compile(r"\A\s*(?:[-*•]|\d+[.)])\s")

_MIN_LONG_ANSWER = 20
"""Words from which an answer must end as a sentence does."""

_MIN_DESCRIPTION = 8
"""Minimum words of a description (twice as many characters in Chinese)."""

_MIN_SENTENCE_WORDS = 6
"""Words (or Chinese characters) from which a repeated sentence counts; shorter ones may be idioms."""

_NGRAM = 4
"""Words of the n-grams that detect repetition and copied captions."""

_MAX_REPEATED, _MIN_NGRAMS = 0.15, 40
"""Maximum fraction of repeated n-grams, in texts of at least this many n-grams."""

_MIN_ORIGINAL = 0.5
"""Minimum fraction of a description's words that are not copied from the captions."""

_COPIED_NGRAM = 10
"""Words of an n-gram that two independent texts do not share."""

_SEVERAL_IMAGES = re.compile(
    r"\b(?:pictures|images|photos|scenes|both|neither|of them|in common|differ\w*)\b"
    r"|\bwhich (?:one|picture|image|photo|scene)\b|都|哪|每|两|共同|不同|相同",
    re.IGNORECASE,
)
"""Words that refer to several images at once."""

_LETTERS = re.compile(
    r"(?<![A-Za-z])[B-H](?![A-Za-z])"
    r"|(?:(?<=[a-z,;] )|(?<=[图片和与、]))A(?![A-Za-z])"
    r"|(?<![A-Za-z])A(?= (?:and|or|is|shows|has|does)\b|\s?[、和与中里比])"
)
"""The letters of images; 'A' only where it cannot be an article, which is lower case within a sentence."""

# Feedback is model input: its wording belongs to the data.
_TOO_SHORT_FEEDBACK = "That is too short. Describe the picture in detail."
_PASTED_FEEDBACK = (
    "You repeated what you were given. Describe the picture in words of your own, with places."
)
_ONE_IMAGE_FEEDBACK = (
    "Each question must need at least two of the pictures. Write it all again; call them by letter."
)
_EXAMPLE_FEEDBACK = "You copied from an example. Write all of it again, about this picture alone."


def check_complete(kind: Kind, answer: str) -> None:
    """Raise RejectedReply if an answer is too short for a description, or truncated."""
    num_words = len(answer.split())
    num_wide = sum(ord(char) >= 0x2E80 for char in answer)
    if kind == "detail" and num_words < _MIN_DESCRIPTION and num_wide < 2 * _MIN_DESCRIPTION:
        raise RejectedReply("too short", f"{num_words} words", feedback=_TOO_SHORT_FEEDBACK)
    last_line = answer.rstrip().rsplit("\n", 1)[-1]
    ends_with_emoji = category(last_line[-1:] or " ") == "So"
    ends = ends_with_emoji or _END.search(answer) or _LIST_ITEM.match(last_line)
    if max(num_words, num_wide // 2) >= _MIN_LONG_ANSWER and not ends:
        raise RejectedReply("breaks off", f"it ends with {answer[-30:]!r}")


def check_repetition(exchanges: Sequence[Exchange]) -> None:
    """Raise RejectedReply if a question or a long sentence is repeated, or an answer repeats many n-grams.

    Small models repeat themselves until they reach the maximum length.
    """
    questions = Counter(" ".join(word_tokens(exchange.question)) for exchange in exchanges)
    for question, count in questions.items():
        if count > 1:
            raise RejectedReply("circles", f"a question {count} times: {question[:60]!r}")
    sentences = Counter(
        sentence
        for exchange in exchanges
        for part in re.split(r"(?<=[.!?。！？])\s*|\n+", exchange.answer)  # noqa: RUF001 - Chinese punctuation
        if len(sentence := word_tokens(part)) >= _MIN_SENTENCE_WORDS
    )
    for sentence, count in sentences.items():
        if count > 1:
            text = " ".join(sentence)
            raise RejectedReply("circles", f"a sentence {count} times: {text[:60]!r}")
    for exchange in exchanges:
        ngrams = _ngrams(exchange.answer, _NGRAM)
        repeated = 1 - len(set(ngrams)) / len(ngrams) if len(ngrams) >= _MIN_NGRAMS else 0.0
        if repeated > _MAX_REPEATED:
            raise RejectedReply("circles", f"{repeated:.0%} of all {_NGRAM}-grams are repetitions")


def check_not_copied(answer: str, captions: str) -> None:
    """Raise RejectedReply if most words of a description are copied from its image's captions."""
    caption_ngrams = _caption_ngrams(captions, _NGRAM)
    words = word_tokens(answer)
    copied = {
        start + offset
        for start, ngram in enumerate(_ngrams(answer, _NGRAM))
        if ngram in caption_ngrams
        for offset in range(_NGRAM)
    }
    if words and 1 - len(copied) / len(words) < _MIN_ORIGINAL:
        raise RejectedReply(
            "pasted",
            f"{len(copied)} of {len(words)} words are in the captions in the same order",
            feedback=_PASTED_FEEDBACK,
        )


def check_uses_several_images(exchanges: Sequence[Exchange]) -> None:
    """Raise RejectedReply if an exchange neither names two images by letter nor refers to several at once."""
    for exchange in exchanges:
        text = f"{exchange.question}\n{exchange.answer}"
        letters = {"A" if "A" in match[0] else match[0] for match in _LETTERS.finditer(text)}
        if len(letters) < 2 and not _SEVERAL_IMAGES.search(text):
            raise RejectedReply(
                "one image",
                f"{exchange.question[:60]!r} needs one image only",
                feedback=_ONE_IMAGE_FEEDBACK,
            )


def copied_example_check(prompt: TeacherPrompt) -> Callable[[Sequence[str], str], None]:
    """Return a check for lines of the system message, which show the format, and for n-grams of the examples.

    It raises RejectedReply for texts that contain one; an n-gram that is in the image's captions is allowed.
    """
    system_lines = {word_tokens(line) for line in prompt.system.split("\n")} - {()}
    example_ngrams = {
        ngram for pair in prompt.examples for text in pair for ngram in _ngrams(text, _COPIED_NGRAM)
    }

    def check(texts: Sequence[str], captions: str) -> None:
        for text in texts:
            if word_tokens(text) in system_lines:
                raise RejectedReply("placeholder", f"{text[:40]!r} is a line of the system message")
        caption_ngrams = _caption_ngrams(captions, _COPIED_NGRAM)
        for text in texts:
            for ngram in _ngrams(text, _COPIED_NGRAM):
                if ngram in example_ngrams and ngram not in caption_ngrams:
                    copied = " ".join(ngram)
                    raise RejectedReply(
                        "example",
                        f"{copied!r} is copied from an example",
                        feedback=_EXAMPLE_FEEDBACK,
                    )

    return check


def word_tokens(text: str) -> tuple[str, ...]:
    """Return the words of a text in lower case; each Chinese character is one."""
    return tuple(re.findall(r"[\u2e80-\uffff]|[^\W_\u2e80-\uffff]+", text.casefold()))


def _ngrams(text: str, length: int) -> list[tuple[str, ...]]:
    """Return all n-grams of `length` words in a text."""
    words = word_tokens(text)
    return [words[start : start + length] for start in range(len(words) - length + 1)]


def _caption_ngrams(captions: str, length: int) -> set[tuple[str, ...]]:
    """Return the n-grams of `length` words in captions, one caption per line."""
    return {ngram for caption in captions.split("\n") for ngram in _ngrams(caption, length)}
