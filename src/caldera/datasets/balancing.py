"""CC3M-595K noun-phrase filter.

LLaVA's authors used spaCy. Here a phrase is a run of words without punctuation or a function word between them
(articles, prepositions, pronouns, auxiliary and frequent verbs). A word in -ing or -ed is a verb, and ends a run, if a
function word follows ("wearing a hat") and a part of the phrase if not ("wedding dress"); so is a word between a phrase
and an article ("the waiter pours a glass"). Adverbs in -ly and numerals are left out. Of a long run the last words
count. docs/data.md has the rule's measured precision.

arXiv 2304.08485, appendix: find the noun phrases of all captions; leave out phrases that fewer than 3 captions have;
from the rarest phrase to the most frequent, take the captions that have it, of more than 100 a random 100.
"""

import random
import re
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
from caldera.datasets.importer import PathRewriter
from caldera.errors import InputError
from caldera.files.records import read_records
from caldera.files.skipped import SkippedItems

MAX_WORDS = 4
"""Of longer runs the last words are taken."""

_WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*|[^\s\w]")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_FUNCTION = _words(
    """
    a an the this that these those some any each every all both several many few more most much no another other
    others same such own various different one two three four five six seven eight nine ten dozen i me my you
    your he him his she her hers it its we us our they them their theirs himself herself itself themselves who
    whom whose which what there here someone something everyone everything about above across after against
    along alongside amid among amongst around as at atop away back before behind below beneath beside besides
    between beyond by down during except for from in inside into like near next of off on onto opposite out
    outside over past per since than through throughout to together toward towards under underneath until up
    upon via with within without and or but nor so yet if while when where whereas because although though then
    is are was were be been being am has have had having do does did doing done can could will would shall
    should may might must not s t re ll very quite too also just only even still again almost now today how why
    ahead apart aside forward outdoors indoors
    """
)
"""Words between phrases."""

_VERBS = _words(
    """
    show shows shown sit sits sat stand stands stood hold holds held look looks wear wears worn walk walks run
    runs ran ride rides play plays go goes gone went make makes made take takes taken took get gets got give
    gives given gave eat eats lie lies lay lays lain jump jumps pose poses catch catches caught throw throws
    thrown perform performs contain contains include includes see sees seen saw say says said come comes came
    keep keeps kept leave let lets fly flies swim swims climb climbs carry carries pull pulls push pushes
    hang hangs hung use uses appear appears seem seems smile smiles cut wait waits watch watches prepare
    prepares talk talks speak speaks feature features try tries turn turns reach reaches enjoy enjoys sleep
    sleeps
    """
)
"""Frequent verbs of captions; they end a phrase unless an article stands before them ("a look", "the watch")."""

_NOUNS = _words(
    """
    building painting drawing ceiling clothing lighting railing wedding evening morning string spring clearing
    crossing earring sibling duckling pudding topping icing dressing stocking awning landing parking swing thing
    sling sting king wing ring meeting opening ending fencing bedding flooring siding setting gathering living
    bed seed weed shed sled breed reed feed steed red moped hundred family butterfly
    dragonfly lily jelly belly italy assembly
    """
)
"""Words in -ing and -ed that are no verbs, and in -ly that are no adverbs."""

_ARTICLES = _words("a an the his her its their my your our")

_COLORS = _words(
    """
    black white red green blue yellow brown orange pink purple grey gray silver gold golden tan beige
    """
)
"""Words that are no phrase alone: 'a red and white shirt' shows one thing."""

_PLURALS = {
    "people": "person", "men": "man", "women": "woman", "children": "child", "feet": "foot", "mice": "mouse",
    "teeth": "tooth", "geese": "goose", "knives": "knife", "leaves": "leaf", "shelves": "shelf", "wolves": "wolf",
    "loaves": "loaf", "wives": "wife", "calves": "calf", "buses": "bus", "movies": "movie", "cookies": "cookie",
    "selfies": "selfie", "hoodies": "hoodie", "brownies": "brownie",
}  # fmt: skip

_SINGULAR = _words(
    """
    always bus canvas christmas clothes gas glasses grass jeans lens pants plus scissors series shorts skis
    sunglasses tennis texas
    """
)
"""Words in -s that are no plurals, or have no singular."""

_ES = ("ches", "shes", "sses", "xes", "zzes", "toes")
"""Endings of plurals in -es; of others only the s is taken off."""


def singular(noun: str) -> str:
    """Return a noun's singular: 'dogs' -> 'dog', 'boxes' -> 'box', 'ponies' -> 'pony', 'people' -> 'person'."""
    if noun in _PLURALS:
        return _PLURALS[noun]
    if noun in _SINGULAR or len(noun) < 4 or not noun.endswith("s") or noun.endswith(("ss", "us", "is")):  # fmt: skip
        return noun
    if noun.endswith("ies") and len(noun) > 4:
        return f"{noun[:-3]}y"
    return noun[:-2] if noun.endswith(_ES) else noun[:-1]


def noun_phrases(text: str) -> list[str]:
    """Return the noun phrases of a text in its order, in lower case, the last word in the singular.

    'Two small dogs are running on the wet grass.' -> ['small dog', 'wet grass']
    """
    words = _WORD.findall(text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))
    phrases: list[str] = []
    run: list[str] = []
    for before, word, after in zip(["", *words], words, [*words[1:], ""], strict=False):
        if _is_boundary(before, word, after) or (run and after in _ARTICLES):
            _emit_phrase(run, phrases)
        elif not word.isdigit():
            run.append(word)
    _emit_phrase(run, phrases)
    return phrases


def _emit_phrase(run: list[str], phrases: list[str]) -> None:
    """Take a run as a phrase and start a new one."""
    if run and not (len(run) == 1 and run[0] in _COLORS):
        phrases.append(" ".join((*run[-MAX_WORDS:-1], singular(run[-1]))))
    run.clear()


def _is_boundary(before: str, word: str, after: str) -> bool:
    """Tell whether a word stands between phrases."""
    if word.partition("'")[0] in _FUNCTION or not word[0].isalnum():
        return True
    if word in _NOUNS:
        return False
    if word.endswith("ly") and len(word) > 4:
        return True
    if before in _ARTICLES:
        return False
    if word in _VERBS:
        return True
    verbal = word.endswith(("ed", "ing"))
    return verbal and (after in _FUNCTION or not after or not after[0].isalnum())


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
