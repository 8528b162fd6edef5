"""Statements on which several captions of an image agree, in their own phrases.

A word is supported if at least two captions state it, or one caption and a box, and fewer deny it; forms and synonyms
of a word count as the same. A caption that the boxes or the other captions contradict, a question and a caption that
breaks off are not used.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from caldera.annotations.annotated_image import AnnotatedImage
from caldera.annotations.english import PLURAL_ONLY, number_word, plural, sentence
from caldera.annotations.noun_phrases import FUNCTION_WORDS, VERBS, word_set
from caldera.instructions.caption_claims import is_statement, split_claims
from caldera.instructions.caption_clauses import FINITE_AUXILIARIES, Clause, parse_clause
from caldera.instructions.caption_words import (
    ANIMATE_HEADS,
    content_keys,
    content_words,
    normalize_caption,
    stem,
    word_key,
)
from caldera.instructions.coco_knowledge import COLORS, OTHER_NAMES, mentioned_categories

_MIN_WORDS, _MAX_WORDS = 4, 24
"""Length of the captions that are used as sentences."""

_MAX_FURTHER = 2
"""Maximum number of sentences after the first that captions contribute."""

_MAX_UNSUPPORTED = 0.5
"""Maximum fraction of unsupported content words of a caption that is used."""

_VAGUE = frozenset(
    map(
        word_key,
        word_set(
            "top front side back middle background foreground picture image photo view scene number lot something"
        ),
    )
)
"""Keys of words that add nothing new."""

_TAIL_STARTS = word_set(
    "with while as near next in on at by behind beside under above during for along against"
)
"""Words that begin a part of a caption that may be omitted."""

_NEEDS_TAIL = word_set(
    "full top front back side next close made set up out down covered filled used"
)
"""Words after which a part of a caption may not be omitted."""

_POSTURES = frozenset(
    map(
        word_key,
        word_set(
            "sit stand walk lie lay ride run jump fly ski surf skate skateboard drive travel pull park"
        ),
    )
)
"""Keys of verbs of which a subject does one at a time."""

_MALE, _FEMALE = (
    word_set("man men boy boys guy guys his him he"),
    word_set("woman women girl girls lady ladies her she"),
)

_NUMBERS = {number_word(count): str(count) for count in range(2, 13)}

_VALUED_NOUN = re.compile(
    rf"\b(?:({'|'.join(_NUMBERS)}|[2-9]|\d\d+) )?(?:(?:small|little|large|big|young|old) )*"
    rf"(?:({'|'.join(COLORS)}) )?([a-z]+)\b"
)
"""A noun with the number and the color before it, both optional."""

_GROUP_WORDS = re.compile(
    r"\b(?:group|herd|couple|bunch|pair|flock|fleet|crowd|family|several|many|some|multiple|row|lots?|all|both|team|"
    r"various|different|lines?|stacks?|piles?|sets?|number)\b"
)


@dataclass(frozen=True, slots=True)
class Agreement:
    """Statements on which several captions of an image agree."""

    sentences: tuple[str, ...] = ()
    """Sentences, the most general one first; empty if the captions agree on none."""

    lead: int | None = None
    """Index of the caption that is the first statement."""

    actions: tuple[Clause, ...] = ()
    """Supported statements of what a person or an animal does, at most one for each verb."""

    trusted: tuple[int, ...] = ()
    """Indices of the captions that state something which nothing contradicts."""

    supported: frozenset[str] = frozenset()
    """Keys of the supported words, and their stems."""


def find_agreement(image: AnnotatedImage, categories: frozenset[str] = frozenset()) -> Agreement:
    """Return what the captions of an image agree on; `categories` are all that its annotators labeled."""
    return _Captions(image, categories).agreement()


def without_doubtful_counts(image: AnnotatedImage) -> AnnotatedImage:
    """Return the image without the counts that its captions contradict.

    A category with several boxes is not counted where captions name another number, or where at least two name it and
    all in the singular: a cat and its reflection in a mirror have two boxes.
    """
    text = "\n".join(image.captions).lower()
    doubtful = set()
    for category, count in image.counts.items():
        numbers = {number for names in [_names(category)] for number in _numbers_of(names, text)}
        if numbers - {count} or (count > 1 and _only_singular(category, image.captions)):
            doubtful.add(category)
    return replace(image, uncounted=image.uncounted | doubtful) if doubtful else image


def _names(category: str) -> tuple[str, ...]:
    """Return a category and its other names, except those that stand for several people."""
    return (category, *OTHER_NAMES.get(category, ()))


def _numbers_of(names: Sequence[str], text: str) -> Iterator[int]:
    """Yield the numbers directly before the plurals of names, with at most two words between: 'two small dogs'."""
    words = {number_word(count): count for count in range(2, 13)}
    plurals = "|".join(re.escape(plural(name)) for name in names)
    pattern = rf"\b({'|'.join(words)}|[2-9]|1[0-9])\b (?:[a-z-]+ ){{0,2}}?(?:{plurals})\b"
    for match in re.finditer(pattern, text):
        yield words.get(match[1]) or int(match[1])


def _only_singular(category: str, captions: Sequence[str]) -> bool:
    """Return whether at least two captions name a category, and all in the singular."""
    if category in PLURAL_ONLY:
        return False
    names = [name for name in _names(category) if plural(name) != name]
    several = re.compile(rf"\b(?:{'|'.join(re.escape(plural(name)) for name in names)})\b")
    single = re.compile(rf"\b(?:{'|'.join(map(re.escape, names))})\b")
    mentions = [
        text for text in map(str.lower, captions) if single.search(text) or several.search(text)
    ]
    return len(mentions) >= 2 and not any(
        several.search(text) or _GROUP_WORDS.search(text) for text in mentions
    )


class _Captions:
    """Captions of one image with the support of their words."""

    def __init__(self, image: AnnotatedImage, categories: frozenset[str]) -> None:
        self._categories = categories
        self._texts = [normalize_caption(caption) for caption in image.captions]
        self._claims = [split_claims(text) for text in self._texts]
        self._keys = [content_keys(claims.stated) for claims in self._claims]
        self._boxed = {item.category for item in image.instances}
        boxed_keys = {key for category in self._boxed for key in content_keys(category)}
        self._stated = Counter(key for keys in [*self._keys, boxed_keys] for key in keys)
        self._denied = Counter(
            key for claims in self._claims for key in content_keys(claims.denied)
        )
        self._support = _without_denied(self._stated, self._denied)
        self._trusted = self._find_trusted(image)
        self._clauses = [
            None if claims.denied else parse_clause(text)
            for text, claims in zip(self._texts, self._claims, strict=True)
        ]

    def agreement(self) -> Agreement:
        """Return what the captions agree on."""
        stems = Counter(
            part for claims in self._claims for part in {*map(stem, content_words(claims.stated))}
        )
        stems.update({stem(category) for category in self._boxed})
        denied = Counter(
            part for claims in self._claims for part in {*map(stem, content_words(claims.denied))}
        )
        stems = _without_denied(stems, denied)
        supported = frozenset(
            name for names in (self._support, stems) for name, count in names.items() if count > 1
        )
        candidates = [index for index in self._trusted if self._score(index) > 0]
        trusted = tuple(self._trusted)
        if len(self._texts) < 2 or not candidates:
            return Agreement(trusted=trusted, supported=supported)
        lead = max(candidates, key=self._score)
        text = self._trim(self._texts[lead])
        sentences = [_as_sentence(text, parse_clause(text))]
        clause = self._clauses[lead]
        if clause:
            sentences += self._further_sentences(lead, clause, content_keys(text))
        return Agreement(tuple(sentences), lead, tuple(self._actions()), trusted, supported)

    def _find_trusted(self, image: AnnotatedImage) -> list[int]:
        """Return the indices of captions that state something, and that nothing contradicts."""
        counts = image.counts
        categories_by_caption = [
            mentioned_categories(claims.stated, self._categories) for claims in self._claims
        ]
        mentions = Counter(
            category for categories in categories_by_caption for category in categories
        )
        trusted = []
        for index, text in enumerate(self._texts):
            alone = {
                name
                for name in categories_by_caption[index]
                if mentions[name] == 1 and name in text.lower()
            }
            wrong_number = any(
                set(_numbers_of(_names(category), text.lower())) - {count}
                for category, count in counts.items()
            )
            invented = image.instances and alone - self._boxed
            is_stated = is_statement(text) and self._keys[index]
            if is_stated and not (wrong_number or invented or self._is_disputed(index)):
                trusted.append(index)
        return trusted

    def _is_disputed(self, index: int) -> bool:
        """Return whether as many captions deny what one states, or the reverse, or disagree on a color or a number."""
        denied = self._claims[index].denied
        if any(self._denied[key] >= self._stated[key] for key in self._keys[index]) or any(
            self._stated[key] >= self._denied[key] for key in content_keys(denied)
        ):
            return True
        if mentioned_categories(denied, self._categories) & self._boxed:
            return True
        values = [_values_of_nouns(claims.stated) for claims in self._claims]
        for subject, value in values[index].items():
            counts = Counter(other[subject] for other in values if subject in other)
            if any(count >= counts[value] for other, count in counts.items() if other != value):
                return True
        return False

    def _score(self, index: int) -> float:
        """Return how much of a caption others support; 0 or less if it is not to be used."""
        keys = self._keys[index]
        length = len(self._texts[index].split())
        unsupported = sum(self._support[key] < 2 for key in keys)
        if (
            not keys
            or not _MIN_WORDS <= length <= _MAX_WORDS
            or unsupported > _MAX_UNSUPPORTED * len(keys)
        ):
            return 0.0
        score = sum(
            1.0 if self._support[key] > 2 else 0.6 for key in keys if self._support[key] > 1
        )
        vague = {"person", "people"} & {*self._texts[index].lower().split()}
        return (
            score - 0.7 * unsupported + 0.3 * (self._clauses[index] is not None) - 0.5 * bool(vague)
        )

    def _trim(self, text: str) -> str:
        """Return a text without its last parts that no other caption supports."""
        words = text.split()
        for start in range(len(words) - 1, _MIN_WORDS - 1, -1):
            before = words[start - 1].lower()
            if words[start].lower() not in _TAIL_STARTS and not before.endswith(","):
                continue
            keys = {*content_keys(" ".join(words[start:]))} - _VAGUE
            if any(self._support[key] > 1 for key in keys) or not keys:
                break
            if before in FUNCTION_WORDS | _NEEDS_TAIL or before.endswith("ed"):
                continue
            words = words[:start]
        return " ".join(words).rstrip(",;")

    def _further_sentences(self, lead: int, clause: Clause, keys: Iterable[str]) -> Iterator[str]:
        """Yield new statements of other captions about the same subject, if others support them."""
        covered = {*keys, *_VAGUE, *content_keys(clause.name)}
        others = [(index, self._clauses[index]) for index in self._trusted if index != lead]
        for _ in range(_MAX_FURTHER):
            gains = [
                (len(new), -index, index, other)
                for index, other in others
                if other is not None
                and _is_same_subject(clause, other)
                and (new := self._new_keys(other, covered))
            ]
            if not gains:
                return
            _, _, index, other = max(gains, key=lambda gain: gain[:2])
            predicate = self._trim(other.predicate)
            covered.update(content_keys(predicate))
            others = [item for item in others if item[0] != index]
            yield sentence(
                replace(other, predicate=predicate).sentence_about(clause.definite_subject)
            )

    def _new_keys(self, clause: Clause, covered: set[str]) -> set[str]:
        """Return the supported keys of a predicate that are new, besides its verb; none if it is not to be used."""
        keys = content_keys(self._trim(clause.predicate))
        unsupported = sum(self._support[key] < 2 for key in keys)
        if (
            unsupported > 1
            or not keys
            or keys[0] in covered
            or (_POSTURES & covered and keys[0] in _POSTURES)
        ):
            return set()
        objects = keys if clause.form == "state" else keys[1:]
        return {key for key in objects if self._support[key] > 1} - covered

    def _actions(self) -> Iterator[Clause]:
        """Yield supported statements of what a person or an animal does."""
        verbs = set()
        for index in sorted(self._trusted, key=self._score, reverse=True):
            clause = self._clauses[index]
            if clause is None or not clause.acts or clause.form in ("state", "participle"):
                continue
            predicate = self._trim(clause.predicate)
            keys = content_keys(predicate)
            if (
                not keys
                or self._support[keys[0]] < 2
                or sum(self._support[key] < 2 for key in keys) > 1
            ):
                continue
            if keys[0] not in verbs and self._support[word_key(clause.head)] > 1:
                verbs.add(keys[0])
                yield replace(clause, predicate=predicate)


def _without_denied(stated: Counter[str], denied: Counter[str]) -> Counter[str]:
    """Return the counts of what fewer captions deny than state."""
    return Counter({key: count for key, count in stated.items() if count > denied[key]})


def _values_of_nouns(text: str) -> dict[tuple[str, str], str]:
    """Return the color and the number before each noun of a text: {('color', 'truck'): 'white'}."""
    values: dict[tuple[str, str], str] = {}
    for number, color, noun in _VALUED_NOUN.findall(text.lower()):
        if noun not in COLORS and noun not in FUNCTION_WORDS:
            key = word_key(noun)
            values |= {("color", key): color} if color else {}
            values |= {("number", key): _NUMBERS.get(number, number)} if number else {}
    return values


def _is_same_subject(first: Clause, second: Clause) -> bool:
    """Return whether two clauses are about the same subject, so that a predicate of one suits the other."""
    words = {first.head, *second.predicate.lower().split()}
    same = word_key(first.head) == word_key(second.head) and first.is_plural == second.is_plural
    return same and not (words & _MALE and words & _FEMALE)


def _as_sentence(text: str, clause: Clause | None) -> str:
    """Return a caption as a sentence: with a verb where it has none."""
    if clause is not None:
        return sentence(clause.sentence_about(clause.subject))
    words = text.split()
    is_thing = words[0].lower() in ("a", "an", "two", "three", "several", "some") and not any(
        word in VERBS or word in ANIMATE_HEADS or word in FINITE_AUXILIARIES or word.endswith("ing")
        for word in map(str.lower, words)
    )
    if is_thing:
        return sentence(f"the picture shows {words[0].lower()} {' '.join(words[1:])}")
    return sentence(text)
