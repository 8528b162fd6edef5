"""Balancing of captions by noun phrase, as LLaVA filtered CC3M to 595K (arXiv 2304.08485, appendix).

The rule: find the noun phrases of all captions and ignore phrases in fewer than 3 captions; from the rarest phrase to
the most frequent, take the captions that have it, or a random sample of 100 if there are more.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from caldera.annotations.noun_phrases import noun_phrases
from caldera.conversation.reader import ReadOptions, iter_conversations
from caldera.datasets.importer import (
    PathRewriter,
    representable_conversations,
    write_with_skipped,
)
from caldera.datasets.origins import read_origins, write_origins
from caldera.errors import InputError
from caldera.files.skipped_items import SkippedItems

MIN_COUNT, MAX_PER_PHRASE = 3, 100
"""The paper's values."""

FREQUENCY_BINS = (3, 10, 30, 100, 300, 1000, 3000, 10_000)
"""Lower bounds of the rows of the report, in number of captions that have a phrase."""


@dataclass(frozen=True, slots=True)
class BalanceResult:
    """Selected captions, and the phrase counts before and after."""

    selected: tuple[int, ...]
    """Indices of the selected captions, ascending."""

    before: Counter[str]
    """Number of captions with each phrase."""

    after: Counter[str]
    """Number of selected captions with each phrase."""

    total: int
    """Number of captions."""

    skipped: int = 0
    """Number of invalid records."""

    def by_frequency(self) -> list[tuple[str, int, int, int]]:
        """Return a row for each frequency bin: its name, number of phrases, captions before and after."""
        starts = (1, *FREQUENCY_BINS)
        rows = []
        for start, end in zip(starts, [*starts[1:], None], strict=True):
            phrases = [
                phrase
                for phrase, count in self.before.items()
                if count >= start and (end is None or count < end)
            ]
            name = f"{start}+" if end is None else f"{start}-{end - 1}"
            before = sum(self.before[phrase] for phrase in phrases)
            after = sum(self.after[phrase] for phrase in phrases)
            rows.append((name, len(phrases), before, after))
        return rows


def balance(
    captions: Sequence[str],
    *,
    min_count: int = MIN_COUNT,
    max_per_phrase: int = MAX_PER_PHRASE,
    seed: int = 0,
) -> BalanceResult:
    """Select captions by the paper's rule."""
    indices_by_phrase: dict[str, list[int]] = defaultdict(list)
    phrases_by_caption = [frozenset(noun_phrases(caption)) for caption in captions]
    for index, phrases in enumerate(phrases_by_caption):
        for phrase in phrases:
            indices_by_phrase[phrase].append(index)
    pool: set[int] = set()
    for phrase, indices in indices_by_phrase.items():
        if len(indices) < min_count:
            continue
        if len(indices) > max_per_phrase:
            indices = random.Random(f"{seed} {phrase}").sample(indices, max_per_phrase)
        pool.update(indices)
    selected = tuple(sorted(pool))
    return BalanceResult(
        selected=selected,
        before=_count_phrases(phrases_by_caption),
        after=_count_phrases(phrases_by_caption[index] for index in selected),
        total=len(captions),
    )


def _count_phrases(phrases_by_caption: Iterable[frozenset[str]]) -> Counter[str]:
    """Return the number of captions with each phrase."""
    return Counter(phrase for phrases in phrases_by_caption for phrase in phrases)


def balance_file(
    file: Path,
    out: Path,
    *,
    min_count: int = MIN_COUNT,
    max_per_phrase: int = MAX_PER_PHRASE,
    seed: int = 0,
    options: ReadOptions | None = None,
    max_bad_fraction: float = 0.0,
) -> BalanceResult:
    """Write the records of a data file whose answers `balance` selects, whole or not at all."""
    skipped = SkippedItems(max_bad_fraction)
    valid = iter_conversations(file, skipped, options or ReadOptions())
    conversations = list(representable_conversations(valid, file, skipped))
    total = len(conversations) + len(skipped.items)
    skipped.raise_if_over_limit(total)
    answers = [
        ".\n".join(turn.text for turn in conversation.turns if turn.role == "assistant")
        for conversation in conversations
    ]
    result = balance(answers, min_count=min_count, max_per_phrase=max_per_phrase, seed=seed)
    if not result.selected:
        raise InputError(
            f"no noun phrase of {file} is in {min_count} answers or more; give more captions or a smaller --min-count"
        )
    rewriter = PathRewriter(file.parent, out.parent)
    selected = [rewriter.rewrite(conversations[index]) for index in result.selected]
    origins = read_origins(file)
    write_with_skipped(out, selected, skipped, total)
    write_origins(out, origins)
    return replace(result, skipped=len(skipped.items))
