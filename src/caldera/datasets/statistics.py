"""Statistics of a data file: sizes, lengths, first words of questions, and objects named in answers."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import get_args

from caldera.annotations.noun_phrases import noun_phrases, word_set
from caldera.conversation import Conversation
from caldera.conversation.reader import ReadOptions, iter_conversations
from caldera.datasets.imbalances import AnswerCounts
from caldera.files.skipped_items import SkippedItems
from caldera.instructions.dialogues import Kind

FIRST_WORDS = 3
"""Number of words in the prefix of a question."""

NO_OBJECTS = word_set(
    """
    yes no none nothing neither left right middle top bottom side front back background foreground centre center
    picture image photo photograph scene view way kind number count answer question
    """
)
"""Nouns of answers that name no object in an image; single letters, which name choices, do not either."""

_KINDS = frozenset(get_args(Kind))
_WORD = re.compile(r"[^\W_]+(?:['\N{RIGHT SINGLE QUOTATION MARK}-][^\W_]+)*")


@dataclass(slots=True)
class Histogram:
    """Counts by length."""

    counts: Counter[int] = field(default_factory=Counter)

    def quantile(self, share: float) -> int:
        """Return the smallest length that is at least as long as this share of all; 0 if there are none."""
        threshold, cumulative = share * self.counts.total(), 0
        for length in sorted(self.counts):
            cumulative += self.counts[length]
            if cumulative >= threshold:
                return length
        return 0

    @property
    def mean(self) -> float:
        """Mean length; 0 if there are none."""
        total = sum(length * count for length, count in self.counts.items())
        return total / self.counts.total() if total else 0.0

    def summary(self) -> dict[str, float]:
        """Return the mean, quantiles and the maximum."""
        return {
            "mean": round(self.mean, 2),
            **{f"{share}%": self.quantile(share / 100) for share in (5, 25, 50, 75, 95)},
            "longest": max(self.counts, default=0),
        }


@dataclass(slots=True)
class KindStatistics:
    """Counts of the records of one kind."""

    records: int = 0
    answers: int = 0
    words: int = 0
    """Number of words of all answers."""

    objects: Counter[str] = field(default_factory=Counter)
    """Number of records whose answers name an object, the last word of a noun phrase."""

    def as_dict(self) -> dict[str, object]:
        """Return means and the most frequent objects as a JSON object."""
        return {
            "records": self.records,
            "answers": self.answers,
            "words per answer": round(self.words / max(1, self.answers), 2),
            "objects per record": round(self.objects.total() / max(1, self.records), 2),
            "different objects": len(self.objects),
            "objects": dict(self.objects.most_common(12)),
        }


@dataclass(slots=True)
class DatasetStatistics:
    """Counts of a data file."""

    records: int = 0
    skipped: int = 0
    images: Counter[str] = field(default_factory=Counter)
    """Number of uses of each image."""

    ids: Counter[str] = field(default_factory=Counter)
    images_per_record: Histogram = field(default_factory=Histogram)
    turns_per_record: Histogram = field(default_factory=Histogram)
    """Number of questions per record."""

    question_words: Histogram = field(default_factory=Histogram)
    answer_words: Histogram = field(default_factory=Histogram)
    record_words: Histogram = field(default_factory=Histogram)
    """Words of all turns of a record, by which LLaVA groups its batches."""

    question_prefixes: Counter[tuple[str, ...]] = field(default_factory=Counter)
    """Counts of the first words of questions."""

    short_answers: Counter[str] = field(default_factory=Counter)
    """Counts of answers of at most three words."""

    kinds: dict[str, KindStatistics] = field(default_factory=lambda: defaultdict(KindStatistics))
    answer_counts: AnswerCounts = field(default_factory=AnswerCounts)

    def add(self, conversation: Conversation) -> None:
        """Add a record to the counts."""
        self.records += 1
        self.answer_counts.add(conversation)
        self.ids[conversation.id] += 1
        self.images.update(conversation.images)
        self.images_per_record.counts[len(conversation.images)] += 1
        self.turns_per_record.counts[len(conversation.turns) // 2] += 1
        kind = self.kinds[kind_of_record(conversation.id)]
        kind.records += 1
        objects: set[str] = set()
        words = 0
        for turn in conversation.turns:
            text = turn.text
            length = len(text.split())
            words += length
            if turn.role == "user":
                self.question_words.counts[length] += 1
                if prefix := first_words(text):
                    self.question_prefixes[prefix] += 1
                continue
            self.answer_words.counts[length] += 1
            kind.answers += 1
            kind.words += length
            if length <= FIRST_WORDS:
                self.short_answers[text.strip().rstrip(".").lower()] += 1
            objects.update(objects_of(text))
        self.record_words.counts[words] += 1
        kind.objects.update(objects)

    def as_dict(self) -> dict[str, object]:
        """Return the statistics as a JSON object."""
        return {
            "records": self.records,
            "skipped": self.skipped,
            "repeated ids": sum(count for count in self.ids.values() if count > 1),
            "images": len(self.images),
            "records without an image": self.images_per_record.counts[0],
            "records with several": sum(
                count for length, count in self.images_per_record.counts.items() if length > 1
            ),
            "questions of a record": self.turns_per_record.summary(),
            "words of a question": self.question_words.summary(),
            "words of an answer": self.answer_words.summary(),
            "words of a record": self.record_words.summary(),
            "first words": {
                " ".join(words): count for words, count in self.question_prefixes.most_common(50)
            },
            "short answers": dict(self.short_answers.most_common(50)),
            "kinds": {name: kind.as_dict() for name, kind in self.kinds.items()},
            "imbalances": [asdict(item) for item in self.answer_counts.imbalances()],
        }


def kind_of_record(name: str) -> str:
    """Return the kind in an id: `data generate` puts it at the end, `data mix` puts the file's name in front.

    A record of neither is of the kind "other".
    """
    ending = name.rpartition("-")[2].partition("#")[0]
    if ending in _KINDS:
        return ending
    source, slash, _ = name.partition("/")
    return source.partition("#")[0] if slash else "other"


def objects_of(answer: str) -> set[str]:
    """Return the objects that an answer names: the last words of its noun phrases, except NO_OBJECTS."""
    heads = {phrase.rpartition(" ")[2] for phrase in noun_phrases(answer)}
    return {head for head in heads if len(head) > 1 and head not in NO_OBJECTS}


def first_words(question: str) -> tuple[str, ...]:
    """Return the first words of a question, in lower case; of several lines, those of the first with a "?"."""
    lines = [line for line in question.lower().splitlines() if line.strip()]
    line = next((line for line in lines if "?" in line), lines[0] if lines else "")
    return tuple(_WORD.findall(line))[:FIRST_WORDS]


def compute_statistics(
    file: Path, skipped: SkippedItems, options: ReadOptions | None = None
) -> DatasetStatistics:
    """Compute the statistics of a data file."""
    statistics = DatasetStatistics()
    for conversation in iter_conversations(file, skipped, options or ReadOptions()):
        statistics.add(conversation)
    statistics.skipped = len(skipped.items)
    skipped.raise_if_over_limit(statistics.records + statistics.skipped)
    return statistics


@dataclass(frozen=True, slots=True)
class Branch:
    """A word in the prefix tree of questions, and the words that follow it."""

    word: str
    count: int
    branches: tuple["Branch", ...] = ()


def prefix_tree(
    prefixes: Iterable[tuple[tuple[str, ...], int]], max_words: Sequence[int]
) -> tuple[Branch, ...]:
    """Return the prefixes of questions as a tree, the most frequent words first."""
    if not max_words:
        return ()
    counts: Counter[str] = Counter()
    rest: dict[str, list[tuple[tuple[str, ...], int]]] = defaultdict(list)
    for words, count in prefixes:
        if words:
            counts[words[0]] += count
            rest[words[0]].append((words[1:], count))
    return tuple(
        Branch(word, count, prefix_tree(rest[word], max_words[1:]))
        for word, count in counts.most_common(max_words[0])
    )
