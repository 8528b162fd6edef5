"""HTML page of images next to their records, to read before training."""

import hashlib
import heapq
import re
from base64 import b64encode
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from caldera.conversation import Conversation
from caldera.conversation.reader import ReadOptions, iter_conversations
from caldera.datasets.imbalances import AnswerCounts, Imbalance
from caldera.datasets.statistics import kind_of_record
from caldera.errors import ImageError
from caldera.files.atomic import write_atomic
from caldera.files.html_pages import render_page
from caldera.files.skipped_items import SkippedItems
from caldera.images.data_urls import thumbnail_to_data_url

DEFAULT_LIMIT = 100
"""Number of images, or groups of images, on a page."""

_THUMBNAIL = 320
"""Pixels along the longer side of an image."""

_MAX_INVALID = 20
"""Maximum number of invalid records that are listed."""

_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class RecordsPageReport:
    """Counts of a page, and the imbalances of its data file."""

    records: int
    total: int
    images: int
    problems: int
    """Number of shown records with a problem."""

    skipped: int
    imbalances: Sequence[Imbalance]


@dataclass(frozen=True, slots=True)
class _Record:
    """A record on the page."""

    id: str
    kind: str
    source: str
    exchanges: Sequence[tuple[str, str]]
    """Questions and answers."""

    problems: Sequence[str]


@dataclass(frozen=True, slots=True)
class _Image:
    """An image on the page."""

    name: str
    url: str
    """Data URL; empty where it cannot be decoded."""


@dataclass(frozen=True, slots=True)
class _Card:
    """The records about one image or group of images."""

    images: Sequence[_Image]
    records: Sequence[_Record]


@dataclass(slots=True)
class _Overview:
    """Counts of a whole file, and the cards that are shown of it."""

    total: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    answers: AnswerCounts = field(default_factory=AnswerCounts)
    chosen: list[tuple[int, str]] = field(default_factory=list)
    """Digests and keys of the chosen cards: a heap with the largest digest first, negated."""


def write_records_page(
    file: Path,
    page: Path,
    skipped: SkippedItems,
    options: ReadOptions,
    *,
    limit: int = DEFAULT_LIMIT,
    seed: int = 0,
) -> RecordsPageReport:
    """Write a page about `limit` random images of a data file with all their records, atomically.

    Args:
        file: Data file, in a format of docs/data.md.
        page: HTML file to write.
        skipped: Collects invalid records, whose limit is checked.
        options: How the file is read.
        limit: Maximum number of images, or groups of images that records have in common.
        seed: Seed for the choice; the order of the records does not matter.

    Raises:
        CalderaError: The file cannot be read or has too many invalid records, or the page cannot be written.
    """
    overview = _overview(file, skipped, options, limit, seed)
    skipped.raise_if_over_limit(overview.total + len(skipped.items))
    chosen = {key for _, key in overview.chosen}
    conversations_by_key: dict[str, list[Conversation]] = defaultdict(list)
    for conversation in iter_conversations(file, SkippedItems(1.0), options):
        if (key := _card_key(conversation)) in chosen:
            conversations_by_key[key].append(conversation)
    root = options.images or file.parent
    cards = [_card(conversations, root, options) for conversations in conversations_by_key.values()]
    records = [record for card in cards for record in card.records]
    imbalances = overview.answers.imbalances()
    text = render_page(
        "caldera.datasets",
        "records.html",
        title=file.name,
        cards=cards,
        num_records=len(records),
        total=overview.total,
        kinds=overview.kinds.most_common(),
        sources=overview.sources.most_common(),
        imbalances=imbalances,
        invalid=skipped.items[:_MAX_INVALID],
        num_invalid=len(skipped.items),
        policy="{policy}",
    )
    script = _SCRIPT.search(text)
    assert script is not None
    digest = b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    write_atomic(page, text.replace("{policy}", f"'sha256-{digest}'", 1))
    return RecordsPageReport(
        records=len(records),
        total=overview.total,
        images=sum(len(card.images) for card in cards),
        problems=sum(bool(record.problems) for record in records),
        skipped=len(skipped.items),
        imbalances=imbalances,
    )


def _overview(
    file: Path, skipped: SkippedItems, options: ReadOptions, limit: int, seed: int
) -> _Overview:
    """Count the records of a file, and choose the cards with the smallest digests of key and seed."""
    overview = _Overview()
    seen_keys: set[str] = set()
    for conversation in iter_conversations(file, skipped, options):
        overview.total += 1
        overview.kinds[kind_of_record(conversation.id)] += 1
        overview.sources[_source(conversation)] += 1
        overview.answers.add(conversation)
        key = _card_key(conversation)
        if key in seen_keys:
            continue
        seen_keys.add(key)
        digest = hashlib.blake2b(f"{seed} {key}".encode("utf-8", "surrogatepass"), digest_size=8)
        entry = (-int.from_bytes(digest.digest()), key)
        if len(overview.chosen) < limit:
            heapq.heappush(overview.chosen, entry)
        else:
            heapq.heappushpop(overview.chosen, entry)
    return overview


def _card_key(conversation: Conversation) -> str:
    """Return what records on one card share: their images, or the place in the file of a record without."""
    return "\n".join(conversation.images) or f"\n{conversation.location or conversation.id}"


def _source(conversation: Conversation) -> str:
    """Return the file that `data mix` names at the beginning of an id; empty if there is none."""
    name, slash, _ = conversation.id.partition("/")
    return name if slash else ""


def _card(conversations: Sequence[Conversation], root: Path, options: ReadOptions) -> _Card:
    """Return the records about the same images, with their problems."""
    images, broken = [], []
    for name in conversations[0].images:
        try:
            images.append(
                _Image(name, thumbnail_to_data_url(root / name, _THUMBNAIL, options.decoding))
            )
        except ImageError as error:
            images.append(_Image(name, ""))
            broken.append(str(error))
    questions: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    records = []
    for conversation in conversations:
        texts = [turn.text.strip() for turn in conversation.turns]
        exchanges = [*zip(texts[::2], texts[1::2], strict=False)]
        problems = [*broken]
        for question, answer in exchanges:
            questions[question.lower()] += 1
            answers[answer.lower()] += 1
            if questions[question.lower()] > 1:
                problems.append(f"a question about this image is asked again: {question}")
            if len(answer.split()) > 4 and answers[answer.lower()] > 1:
                problems.append(f"an answer about this image is given again: {answer}")
            if not answer:
                problems.append("an answer is empty")
        kind, source = kind_of_record(conversation.id), _source(conversation)
        records.append(_Record(conversation.id, kind, source, exchanges, problems))
    return _Card(images, records)
