"""Captions in, those out that keep rare things and thin out frequent ones: the rule of LLaVA's CC3M-595K.

arXiv 2304.08485, appendix: find the noun phrases of all captions; leave out phrases that fewer than 3 captions have;
from the rarest phrase to the most frequent, take the captions that have it, of more than 100 a random 100.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from caldera.conversation import (
    Conversation,
    from_record,
    to_record,
    write_conversations,
)
from caldera.datasets.imported import PathRewriter
from caldera.datasets.noun_phrases import noun_phrases
from caldera.errors import InputError
from caldera.record_files import read_records
from caldera.skips import SkippedItems

MIN_COUNT, MAX_PER_PHRASE = 3, 100
"""Of the paper."""

FREQUENCY_BINS = (3, 10, 30, 100, 300, 1000, 3000, 10_000)
"""Where the rows of the report's table begin, in captions that have a phrase."""


@dataclass(frozen=True, slots=True)
class BalanceResult:
    """What balancing did."""

    kept: tuple[int, ...]
    """Places of the captions that stay, in their order."""

    before: Counter[str]
    """In how many captions each phrase was."""

    after: Counter[str]
    bad: int = 0
    """Records that could not be read and were left out."""

    total: int = 0
    """Captions there were."""

    def by_frequency(self) -> list[tuple[str, int, int, int]]:
        """Return a row for each band of frequency: its name, its phrases, and captions with one before and after."""
        starts = (1, *FREQUENCY_BINS)
        rows = []
        for start, end in zip(starts, [*starts[1:], None], strict=True):
            inside = [
                phrase
                for phrase, count in self.before.items()
                if count >= start and (end is None or count < end)
            ]
            name = f"{start}+" if end is None else f"{start}-{end - 1}"
            counts = (sum(counter[phrase] for phrase in inside) for counter in (self.before, self.after))  # fmt: skip
            rows.append((name, len(inside), *counts))
        return rows  # type: ignore[return-value] # of two counts each


def balance(
    captions: Sequence[str], *, least: int = MIN_COUNT, most: int = MAX_PER_PHRASE, seed: int = 0
) -> BalanceResult:
    """Choose captions by the paper's rule.

    Args:
        captions: Their texts.
        least: Phrases that fewer captions have are passed over.
        most: Of captions with a phrase at most so many are drawn for it; others of its may come for other phrases.
        seed: Of the draws.
    """
    having: dict[str, list[int]] = defaultdict(list)
    phrases = [frozenset(noun_phrases(caption)) for caption in captions]
    for place, each in enumerate(phrases):
        for phrase in each:
            having[phrase].append(place)
    pool: set[int] = set()
    for phrase in sorted(having, key=lambda one: (len(having[one]), one)):
        places = having[phrase]
        if len(places) > most:
            places = random.Random(f"{seed} {phrase}").sample(places, most)
        if len(having[phrase]) >= least:
            pool.update(places)
    kept = tuple(sorted(pool))
    return BalanceResult(
        kept=kept,
        before=_counted(phrases),
        after=_counted(phrases[place] for place in kept),
        total=len(captions),
    )


def _counted(phrases: Iterable[frozenset[str]]) -> Counter[str]:
    """Count in how many captions each phrase is."""
    return Counter(phrase for each in phrases for phrase in each)


def balance_file(
    file: Path,
    out: Path,
    *,
    least: int = MIN_COUNT,
    most: int = MAX_PER_PHRASE,
    seed: int = 0,
    ignore: frozenset[str] = frozenset(),
    max_bad: float = 0.0,
) -> BalanceResult:
    """Write the records of a data file whose answers the rule keeps, whole or not at all.

    Raises:
        InputError: The file cannot be read, too many records are bad, or nothing is kept.
        OutputError: The new one cannot be written.
    """
    skips, read, total = SkippedItems(max_bad), list[Conversation](), 0
    for where, record in read_records(file):
        total += 1
        try:
            conversation = from_record(record, where, ignore)
            to_record(conversation)
            read.append(conversation)
        except InputError as fault:
            skips.add_or_raise(where, fault)
    skips.raise_if_over_limit(total)
    chosen = balance([_answers(one) for one in read], least=least, most=most, seed=seed)
    if not chosen.kept:
        raise InputError(
            f"no noun phrase of {file} is in {least} answers or more; give more captions or a smaller --least"
        )
    moved = PathRewriter(file.parent, out.parent)
    write_conversations(out, [moved.rewrite(read[place]) for place in chosen.kept])
    if skips.items:
        skips.write(out.with_suffix(".bad.jsonl"))
    return BalanceResult(chosen.kept, chosen.before, chosen.after, len(skips.items), chosen.total)


def _answers(conversation: Conversation) -> str:
    """Return what the assistant says."""
    return ".\n".join(turn.text for turn in conversation.turns if turn.role == "assistant")
