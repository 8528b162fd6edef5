"""Imbalances of a data file's questions and answers, which a model learns in place of looking at the image.

Only what is unlikely to be chance is reported: a share of yes, of the first of two options or of a letter that is more
than 5 points from equal and more than three standard deviations; an answer that dominates a repeated question;
questions asked twice in other words about one image; long answers that are repeated.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from caldera.annotations.noun_phrases import singular, word_set
from caldera.conversation import Conversation

_MIN_SHIFT, _MIN_DEVIATIONS = 0.05, 3.0
"""Distance of a share from the equal one that is reported, absolute and in standard deviations."""

_MIN_ASKED, _MAX_DOMINANCE = 20, 0.75
"""Minimum number of times that a question is asked, and maximum share of one of its answers."""

_MIN_REPEATED, _MAX_REPEATED_SHARE = 10, 0.01
"""Minimum number and share of identical long answers that are reported."""

_LONG_ANSWER = 5
"""Words from which an answer is long."""

_MAX_DUPLICATES = 0.02
"""Maximum share of questions that repeat another one about the same image."""

_MAX_EXAMPLES = 3

_REQUESTS = re.compile(
    r"^\s*(?:answer (?:the question|with)\b.*|(?:picture|image) [a-z]:\s*|<image>)$", re.IGNORECASE
)
"""Lines of a question that only request the form of the answer, or name an image."""

_LETTER_LINE = re.compile(r"^[^\S\n]*\(?([A-H])[.):]\s*\S", re.MULTILINE)
_LETTER_ANSWER = re.compile(
    r"^\s*(?:(?:the )?(?:correct )?answer(?: is|:)\s*)?\(?([A-H])(?:[.):]|\s*$)", re.IGNORECASE
)
_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
_YES_NO = re.compile(r"^\s*(yes|no)\b", re.IGNORECASE)
_FIRST_OPTION = re.compile(r"(?<![^\W_])([^\W_]+)\"?,? or ")
"""Last word of the first of two options; it is tried at the start of a word only, as long words have many ends."""

_CLAUSE_END = re.compile(r"[,;:.!?](?=\s|$)|\n")

_OPTION_STARTS = word_set("a an the to in on at of it is are this that")
"""Words before the one that distinguishes an option: 'to the left'."""

_ARTICLES = word_set("a an the")

_CLAUSE_WORDS = word_set(
    """
    is are was were do does did has have had can could will would should may might it this that there which what who
    whose where when why how
    """
)
_MAX_OPTION_WORDS = 4
"""A clause before "or" that is longer or has one of these words holds more than the first option."""

_ASKING = word_set(
    """
    picture image photo see seen show shown visible displayed part there does do can could answer many much where which
    what who colour color kind type a an the in of this be here is are you it to
    """
)
"""Words that only ask, so that questions are the same without them."""

_FORMS = (("how many", "count"), ("where", "place"), ("in which part", "place"), ("why", "reason"))


@dataclass(frozen=True, slots=True)
class Imbalance:
    """Something that a model could learn in place of the content of images."""

    finding: str
    """What was counted, with counts."""

    advice: str
    """What to do about it."""

    def __str__(self) -> str:
        """Return both as one line."""
        return f"{self.finding}; {self.advice}"


@dataclass(slots=True)
class AnswerCounts:
    """Counts of questions and answers from which imbalances follow."""

    yes_no: Counter[str] = field(default_factory=Counter)
    options: Counter[str] = field(default_factory=Counter)
    """Number of answers that name the first and the second of two options, or both, which is unclear."""

    letters: dict[int, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """Answers to multiple-choice questions, by the number of choices."""

    answers: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """Short answers by the text of the question, in lower case."""

    long_answers: Counter[str] = field(default_factory=Counter)
    num_long: int = 0
    num_questions: int = 0
    """Number of questions about an image."""

    question_counts: Counter[int] = field(default_factory=Counter)
    """Times that a question is asked about an image, by a digest of both; wordings with the same content are one."""

    examples: dict[str, None] = field(default_factory=dict)
    """Texts of some questions that were asked twice, each once, in order."""

    def add(self, conversation: Conversation) -> None:
        """Count the exchanges of a record."""
        images = " ".join(conversation.images)
        question = ""
        for turn in conversation.turns:
            if turn.role == "user":
                question = _without_requests(turn.text)
            elif question:
                self._add_exchange(images, question, turn.text.strip())

    def _add_exchange(self, images: str, question: str, answer: str) -> None:
        letters = _LETTER_LINE.findall(question)
        if len(letters) > 1:
            if match := _LETTER_ANSWER.match(answer):
                self.letters[len(letters)][match[1].upper()] += 1
        elif match := _YES_NO.match(answer):
            self.yes_no[match[1].lower()] += 1
        elif option := _named_option(question, answer):
            self.options[option] += 1
        length = len(answer.split())
        if length >= _LONG_ANSWER:
            self.num_long += 1
            self.long_answers[answer] += 1
        elif len(letters) < 2:
            self.answers[question.lower()][answer.rstrip(".").lower()] += 1
        if images:
            self.num_questions += 1
            key = _question_key(images, question)
            self.question_counts[key] += 1
            if self.question_counts[key] == 2 and len(self.examples) < _MAX_EXAMPLES:
                self.examples.setdefault(question.replace("\n", " "))

    def imbalances(self) -> list[Imbalance]:
        """Return what is out of balance, what concerns most records first."""
        return [
            *_share_imbalances(
                "yes-or-no questions", self.yes_no, ("yes", "no"),
                "a model learns it without the images: add questions with the other answer, or remove some",
            ),
            *_share_imbalances(
                "questions 'A or B'", self.options, ("first", "second"),
                "swap the two options in half of the questions",
                unclear=self.options["unclear"],
            ),
            *(
                imbalance
                for size, counts in sorted(self.letters.items())
                for imbalance in _share_imbalances(
                    f"questions with {size} choices", counts, tuple("ABCDEFGH"[:size]),
                    "shuffle the choices of each question",
                )
            ),
            *self._dominated(),
            *self._duplicates(),
            *self._repeated(),
        ]  # fmt: skip

    def _dominated(self) -> list[Imbalance]:
        """Return the questions that are mostly answered in the same way."""
        dominated = []
        for question, counts in self.answers.items():
            answer, count = counts.most_common(1)[0]
            if counts.total() >= _MIN_ASKED and count > _MAX_DOMINANCE * counts.total():
                dominated.append((counts.total(), count, question, answer))
        if not dominated:
            return []
        dominated.sort(reverse=True)
        examples = ", ".join(
            f"{_shorten(question)!r} is answered {_shorten(answer)!r} {count:,} of {total:,} times"
            for total, count, question, answer in dominated[:_MAX_EXAMPLES]
        )
        advice = "its answer needs no image: ask it about other images too, or of fewer"
        plural = "question is" if len(dominated) == 1 else "questions are"
        return [
            Imbalance(
                f"{len(dominated):,} repeated {plural} nearly always answered alike: {examples}",
                advice,
            )
        ]

    def _duplicates(self) -> list[Imbalance]:
        """Return how many questions repeat another one about the same image."""
        repeated = sum(count - 1 for count in self.question_counts.values() if count > 1)
        if repeated <= _MAX_DUPLICATES * self.num_questions or repeated < _MIN_REPEATED:
            return []
        examples = ", ".join(repr(_shorten(text)) for text in self.examples)
        return [
            Imbalance(
                f"{repeated:,} of {self.num_questions:,} questions repeat another one about the same image in the same "
                f"or other words, such as {examples}",
                "keep one of them for each image",
            )
        ]

    def _repeated(self) -> list[Imbalance]:
        """Return the long answers that are given very often."""
        limit = max(_MIN_REPEATED, _MAX_REPEATED_SHARE * self.num_long)
        frequent = [
            (answer, count) for answer, count in self.long_answers.most_common() if count > limit
        ]
        if not frequent:
            return []
        examples = ", ".join(
            f"{count:,} x {_shorten(answer)!r}" for answer, count in frequent[:_MAX_EXAMPLES]
        )
        advice = "remove most of them; of captions, caldera data balance keeps at most a hundred for each noun phrase"
        plural = (
            "answer of several words is" if len(frequent) == 1 else "answers of several words are"
        )
        return [Imbalance(f"{len(frequent):,} {plural} very frequent: {examples}", advice)]


def _share_imbalances(
    questions: str, counts: Counter[str], options: tuple[str, ...], advice: str, unclear: int = 0
) -> list[Imbalance]:
    """Return the imbalance of the answer whose share is farthest from equal, if that is no chance.

    Unclear answers count for the least frequent option, as far as they would balance it.
    """
    total = sum(counts[option] for option in options)
    expected = 1 / len(options)
    if not total:
        return []
    tested = {option: counts[option] for option in options}
    rarest = min(options, key=lambda name: tested[name])
    tested[rarest] += min(unclear, max(tested.values()) - tested[rarest])
    size = sum(tested.values())
    shift = max(abs(count / size - expected) for count in tested.values())
    deviation = (expected * (1 - expected) / size) ** 0.5
    if shift <= _MIN_SHIFT or shift <= _MIN_DEVIATIONS * deviation:
        return []
    shares = ", ".join(f"{name} {counts[name]:,} ({counts[name] / total:.0%})" for name in options)
    return [Imbalance(f"the answers to {total:,} {questions} are out of balance: {shares}", advice)]


def _without_requests(text: str) -> str:
    """Return a question without the lines that request the form of the answer."""
    return "\n".join(
        line for line in text.strip().splitlines() if not _REQUESTS.match(line)
    ).strip()


def _named_option(question: str, answer: str) -> str | None:
    """Return the option of a question 'A or B?' that an answer names: first, second, or unclear.

    Unclear are answers that name both, or only words after the options, which may belong to the second one. None stands
    for another question, and for an answer that names neither.
    """
    match = _FIRST_OPTION.search(question)
    end = question.find("?", match.end()) if match else -1
    if match is None or end < 0:
        return None
    left = _CLAUSE_END.split(question[: match.end(1)])[-1]
    right = _CLAUSE_END.split(question[match.end() : end])[0]
    # Not in 'A cat or a dog?', whose first word is an article.
    with_letters = any(map(_is_letter, _WORD.findall(right)))
    first, second, rest = _options(_words(left, with_letters), _words(right, with_letters))
    words = {*_words(answer, with_letters)}
    options = [name for name, option in (("first", first), ("second", second)) if words & option]
    if not (first and second):
        return None
    return options[0] if len(options) == 1 else "unclear" if options or words & rest else None


def _options(left: Sequence[str], right: Sequence[str]) -> tuple[set[str], set[str], set[str]]:
    """Return the words of the first option that are not in the second, those of the second, and those after it.

    Args:
        left: Words of the clause before "or": 'is the dog to the left'.
        right: Words after it: 'to the right of the car'.
    """
    start, excluded = 0, {*left}
    is_clause = len(left) > _MAX_OPTION_WORDS or not _CLAUSE_WORDS.isdisjoint(left)
    if is_clause:
        # The first option begins like the second one, or else with the last word that the second one lacks.
        opening = right[0] if right and not _is_content(right[0]) else ""
        same_words = _ARTICLES if opening in _ARTICLES else {opening}
        starts = [index for index, word in enumerate(left) if word in same_words]
        lacking = [i for i, word in enumerate(left) if _is_content(word) and word not in right]
        if not lacking:
            return set(), set(), set()
        start = lacking[-1]
        if starts and starts[-1] < start:
            start = starts[-1]
            excluded = {*left[start:]}
    first = {word for word in left[start:] if _is_content(word) and word not in right}
    new = [word for word in right if _is_content(word) and word not in excluded]
    length = len(first) if is_clause else len(new)
    return first, {*new[:length]}, {*new[length:]}


def _words(text: str, with_letters: bool) -> list[str]:
    """Return the words of a text in lower case, but for the letters of options."""
    words = _WORD.findall(text)
    return [word if with_letters and _is_letter(word) else word.lower() for word in words]


def _is_content(word: str) -> bool:
    """Return whether a word can distinguish options."""
    return bool(word) and word not in _OPTION_STARTS


def _is_letter(word: str) -> bool:
    return len(word) == 1 and word.isupper()


def _question_key(images: str, question: str) -> int:
    """Return a digest of the images, the form and the content words of a question."""
    words = [word.lower() for word in _WORD.findall(question)]
    text = " ".join(words)
    form = next(
        (name for start, name in _FORMS if text.startswith(start)), words[0] if words else ""
    )
    if form in ("is", "are", "do", "does", "can", "could", "was", "were"):
        form = "yes or no"
    elif form == "which":
        form = "what"
    content = {singular(word) for word in words if word not in _ASKING}
    # Other function words distinguish questions: 'left of', 'above', 'on', 'with'.
    key = f"{images}\n{form}\n{' '.join(sorted(content)) or text}"
    return int.from_bytes(
        hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    )


def _shorten(text: str, length: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[: length - 1]}\N{HORIZONTAL ELLIPSIS}"
