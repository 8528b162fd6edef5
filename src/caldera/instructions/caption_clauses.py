"""Captions in, their subjects and predicates out: 'A boy on a couch eats cake' -> 'a boy', 'eats cake'.

Only captions of a simple form are split; any other has no clause and is used as a whole or not at all. What is split
wrongly becomes wrong English, so that a word counts as a verb only where it cannot be a noun.
"""

import re
from dataclasses import dataclass
from typing import Literal

from caldera.annotations.english import article
from caldera.annotations.noun_phrases import (
    ARTICLES,
    FUNCTION_WORDS,
    NOUNS,
    VERBS,
    singular,
    word_set,
)
from caldera.instructions.caption_words import ANIMATE_HEADS, KNOWN_NOUNS, TOKEN

_DETERMINERS = word_set(
    "a an the one two three four five six seven eight nine ten some several many this these his her their its multiple"
)
_PLURAL_DETERMINERS = word_set(
    "two three four five six seven eight nine ten some several many these multiple"
)
_SINGULAR_DETERMINERS = word_set("a an one this")

_MAX_NAME = 3
"""Maximum number of words that name a subject."""

_PARTICIPLES = word_set(
    "dressed seated covered gathered tied surrounded perched mounted wrapped positioned clustered leashed crouched"
)
"""Participles of what people and animals are, not of what they did."""

_NO_SUBJECTS = word_set(
    "set setting view picture photo photograph image shot close-up closeup drawing painting"
)
"""Nouns of captions whose predicate is about something else, or part of the noun: 'a table set for two'."""

_UNCOUNTABLE = word_set(
    "broccoli pizza cake wine beer coffee tea traffic luggage cattle baggage sheep"
)

_PREPOSITIONS = word_set(
    """
    in on at by near next behind beside besides between under underneath above over below against along alongside among
    around across inside outside atop beneath through toward towards into onto with without from up down off past to
    """
)
_PLACE_PREPOSITIONS = word_set("in on at near next behind beside under inside above")

FINITE_AUXILIARIES = word_set("is are was were has have")

_QUANTITIES = word_set(
    "group herd couple bunch pair number lot lots flock fleet team crowd variety row set pack line collection family"
)
"""Nouns of 'a group of boys', whose noun is the one after 'of'."""

_COMPOUND_ENDS = word_set(
    """
    area awning bag board boat boats bowl boots cake car cart chair clothes coach court dress equipment gear glasses
    ground hat helmet jacket lot machine machines match meter meters pad pan paper park path pins pool pole poles pot
    range rink road rod room shirt shoes shorts site station stick store suit surface table team trail trunks track
    tools vest water wall wheel
    """
)
"""Second words of compounds such as 'cutting board', whose first word is no verb."""

_NOT_VERBS = word_set(
    """
    always bus buses canvas glass glasses grass dress class tennis series clothes less across this his its us is was
    has does various others lots numerous plus towards upwards downwards sometimes besides perhaps
    """
)

_PLURAL_VERBS = VERBS | word_set(
    "rest graze gather race perform skate surf ski compete dance relax line cross drink cook work swing ride hike dig"
)
"""Verbs after plural subjects, where no ending shows that they are verbs."""

_ADJECTIVES = word_set(
    """
    little small tiny big large huge giant tall long short young old older elderly new pretty beautiful cute nice happy
    black white red green blue yellow brown orange pink purple grey gray tan silver gold golden dark light bright
    colorful lone single different other same wooden metal brick wet dirty muddy shaggy empty open closed cluttered
    male female blond blonde bearded brunette smiling professional lonely adult very
    """
)
"""Words that a second mention of a subject omits."""


@dataclass(frozen=True, slots=True)
class Clause:
    """Subject and predicate of a caption."""

    subject: str
    """Noun phrase with its article, as in the caption: 'a little boy'."""

    head: str
    """Noun of the subject: 'boy'."""

    name: str
    """Noun with what distinguishes it: 'baseball player', 'polar bears'."""

    is_plural: bool
    predicate: str
    """Text after the subject, a verb first unless `form` is 'state': 'riding a skateboard', 'rides', 'on a couch'."""

    form: Literal["progressive", "finite", "is", "participle", "state"]
    """Form of the predicate: V-ing, another verb, 'is ...', V-ed, or a preposition."""

    @property
    def acts(self) -> bool:
        """If the subject is a person or an animal."""
        return self.head in ANIMATE_HEADS

    @property
    def definite_subject(self) -> str:
        """The subject as something known: 'the boy', 'the dogs'."""
        return f"the {self.name}"

    @property
    def verb(self) -> str:
        """'is' or 'are'."""
        return "are" if self.is_plural else "is"

    def sentence_about(self, subject: str) -> str:
        """Return the statement as a sentence about a subject in the same number, without a full stop."""
        if self.form in ("progressive", "participle", "state"):
            return f"{subject} {self.verb} {self.predicate}"
        return f"{subject} {self.predicate}"


def parse_clause(caption: str) -> Clause | None:
    """Return subject and predicate of a normalized caption; None if they are uncertain."""
    tokens = TOKEN.findall(caption)
    lower = [token.lower() for token in tokens]
    noun_phrase = _find_subject(lower)
    if noun_phrase is None or noun_phrase[0] >= len(tokens):
        return None
    end, name, is_plural = noun_phrase
    form = _form_of(lower[end:], lower[:end], is_plural=is_plural)
    if form is None:
        verb = _verb_after_attributes(lower, end, name[-1], is_plural=is_plural)
        if verb is None:
            return None
        end, form = verb
    start = end
    if form == "relative":
        form, start = "is", end + 1
    subject = _with_article(_join(lower[:1] + tokens[1:end]), name, is_plural=is_plural)
    return Clause(subject, name[-1], " ".join(name), is_plural, _join(tokens[start:]), form)


def _with_article(subject: str, name: list[str], *, is_plural: bool) -> str:
    """Return a subject with an article if it lacks one: 'white stove' -> 'a white stove'."""
    first = subject.split()[0]
    countable = name[-1] in ANIMATE_HEADS or (
        name[-1] in KNOWN_NOUNS and name[-1] not in _UNCOUNTABLE
    )
    return (
        article(subject)
        if countable and not is_plural and first not in _DETERMINERS | ARTICLES
        else subject
    )


def _verb_after_attributes(
    lower: list[str], end: int, head: str, *, is_plural: bool
) -> tuple[int, Literal["progressive", "finite", "is"]] | None:
    """Return the place and form of the verb after attributes: 'a man in a hat holding a dog'; None if uncertain."""
    if lower[end] not in ("in", "on", "with", "at", "from"):
        return None
    copula = "are" if is_plural else "is"
    for index in range(end + 2, len(lower) - 1):
        word, following = lower[index], lower[index + 1]
        if any(token in FINITE_AUXILIARIES for token in lower[index + 1 :]):
            if word in ANIMATE_HEADS or word.endswith("ing"):
                return None
            continue
        if word == copula:
            return index, "is"
        if word in FINITE_AUXILIARIES or head not in ANIMATE_HEADS or word in ANIMATE_HEADS:
            return None
        before = lower[index - 1]
        if before in FUNCTION_WORDS or before in _ADJECTIVES or not before.isalpha():
            continue
        if _is_progressive(word, following):
            later_verb = any(map(_may_be_verb, lower[index + 1 :], [*lower[index + 2 :], ""]))
            return None if later_verb and not is_plural else (index, "progressive")
        if not is_plural and _may_be_verb(word, following):
            return index, "finite"
    return None


def _join(tokens: list[str]) -> str:
    return re.sub(r" ([,.;:!?])", r"\1", " ".join(tokens))


def _find_subject(lower: list[str]) -> tuple[int, list[str], bool] | None:
    """Return the end of the first noun phrase, the words that name it, and whether it is plural."""
    end = _noun_phrase_end(lower, 0)
    name, is_plural = lower[:end], _is_plural(lower[:end])
    if end + 1 < len(lower) and lower[end] == "of":
        second = _noun_phrase_end(lower, end + 1)
        if second == end + 1:
            return None
        if lower[end - 1] in _QUANTITIES:
            name, is_plural = lower[end + 1 : second], True
        end = second
    name = _without_adjectives(name)
    if end + 1 < len(lower) and lower[end] == "and" and name:
        second = _noun_phrase_end(lower, end + 1)
        other = _without_adjectives(lower[end + 1 : second])
        if len(name) > 1 or len(other) != 1 or not {*name, *other} <= ANIMATE_HEADS:
            return None
        return second, [*name, "and", *other], True
    joined = end < len(lower) and lower[end] in (",", "or", "&")
    if joined or not 0 < len(name) <= _MAX_NAME or name[-1] in _NO_SUBJECTS:
        return None
    return end, name, is_plural


def _without_adjectives(phrase: list[str]) -> list[str]:
    return [
        word
        for word in phrase
        if word not in _ADJECTIVES | _DETERMINERS and word not in (",", "and")
    ]


def _is_plural(phrase: list[str]) -> bool:
    """Return whether a noun phrase is plural."""
    if not phrase or phrase[0] in _SINGULAR_DETERMINERS:
        return False
    head = phrase[-1]
    return phrase[0] in _PLURAL_DETERMINERS or singular(head) != head


def _noun_phrase_end(lower: list[str], start: int) -> int:
    """Return the end of the noun phrase at `start`; `start` if there is none."""
    index = start
    while index < len(lower) and lower[index] in _DETERMINERS:
        index += 1
    first = index
    while index < len(lower) and not _ends_phrase(lower, index, (start, first)):
        index += 1
        following = lower[index : index + 2]
        joins = len(following) == 2 and following[0] in ("and", ",") and following[1] in _ADJECTIVES
        index += joins and lower[index - 1] in _ADJECTIVES
    return index if index > first else start


def _ends_phrase(lower: list[str], index: int, starts: tuple[int, int]) -> bool:
    """Return whether the word at `index` ends the noun phrase; `starts` are its determiner's and its first word's."""
    word = lower[index]
    if not word[0].isalnum() or word.partition("'")[0] in FUNCTION_WORDS:
        return True
    start, first = starts
    if index == first:
        return False
    if first == 0 and lower[0] in ANIMATE_HEADS and index == 1:
        return True
    phrase, following = lower[start:index], lower[index + 1] if index + 1 < len(lower) else ""
    return (
        _is_progressive(word, following)
        or _is_participle(word, following, phrase[-1])
        or _is_finite(word, phrase, following)
    )


def _is_progressive(word: str, following: str) -> bool:
    """Return whether a word in -ing after a noun is a verb."""
    return word.endswith("ing") and word not in NOUNS and following not in _COMPOUND_ENDS


def _is_participle(word: str, following: str, before: str) -> bool:
    """Return whether a word in -ed after a noun is a participle: 'parked under'; 'played' after 'boys' is none."""
    if before in ANIMATE_HEADS and word not in _PARTICIPLES:
        return False
    return word.endswith("ed") and word not in NOUNS and following in _PREPOSITIONS | {"as"}


def _is_finite(word: str, phrase: list[str], following: str) -> bool:
    """Return whether a word after a noun phrase is its verb: 'sits' after 'a dog', 'sit' after 'dogs'."""
    if word in FUNCTION_WORDS or (phrase[-1].endswith("ing") and phrase[-1] not in NOUNS):
        return False
    ends = not following or following in FUNCTION_WORDS or following.endswith(("ing", "ly"))
    if _is_plural(phrase):
        return word in _PLURAL_VERBS and not word.endswith("s") and ends
    if not word.endswith("s") or word.endswith("ss") or word in _NOT_VERBS:
        return False
    # A word that is no frequent verb may be a plural noun, except after a singular article.
    is_verb = ends and (phrase[0] in _SINGULAR_DETERMINERS or phrase[-1] in ANIMATE_HEADS)
    unknown = singular(word) not in KNOWN_NOUNS and following not in ("and", "of")
    return word in VERBS or (is_verb and unknown)


def _form_of(
    rest: list[str], subject: list[str], *, is_plural: bool
) -> Literal["progressive", "finite", "is", "participle", "state", "relative"] | None:
    """Return the form of a predicate; None if there may be another verb that belongs to the subject."""
    word, following = rest[0], rest[1] if len(rest) > 1 else ""
    copula = "are" if is_plural else "is"
    if any(token in FINITE_AUXILIARIES for token in rest[2:]) or not following:
        return None
    later_verb = any(map(_may_be_verb, rest[1:], [*rest[2:], ""])) or (
        is_plural and any(map(_is_base_verb, rest[1:], rest[2:]))
    )
    if word in ("that", "who", "which"):
        return "relative" if following == copula else None
    if word in FINITE_AUXILIARIES:
        return "is" if word == copula else None
    if _is_progressive(word, following):
        return None if later_verb else "progressive"
    if _is_finite(word, subject, following):
        return "finite"
    if later_verb or any(token.endswith("ing") for token in rest[1:]):
        return None
    if _is_participle(word, following, subject[-1]):
        return "participle"
    may_act = subject[-1] in ANIMATE_HEADS and any(map(_may_act, rest[1:], rest[2:]))
    return "state" if word in _PLACE_PREPOSITIONS and not may_act else None


def _may_be_verb(word: str, following: str) -> bool:
    """Return whether a word may be a verb in -s: 'A boy in a blue shirt kicks a ball'."""
    if not word.endswith("s") or word.endswith("ss") or word in _NOT_VERBS | FUNCTION_WORDS:
        return False
    return word in VERBS or (following in ARTICLES and singular(word) not in KNOWN_NOUNS)


def _may_act(word: str, following: str) -> bool:
    """Return whether a word may be a verb with a place or an aim: 'A boy in a blue shirt slides down a hill'."""
    if word.endswith("ed") and word not in _ADJECTIVES | _PARTICIPLES:
        return following in FUNCTION_WORDS
    return _may_be_verb(word, "a") and following in _PREPOSITIONS


def _is_base_verb(before: str, word: str) -> bool:
    """Return whether a word after a noun may be the verb of a plural subject: 'Dogs with a ball run outside'."""
    return (
        word in _PLURAL_VERBS
        and not word.endswith("s")
        and before not in FUNCTION_WORDS | _ADJECTIVES
    )
