"""Claims of captions: what they state, what they deny, and which captions are no statements.

What is denied reaches to the end of its clause, as in 'nobody sits on the bench', or of its noun phrase, as in 'a man
without a hat rides a horse'; where presence is denied it includes the subject, as in 'the dog is not there'. Where that
is uncertain, too much is taken as denied rather than too little.
"""

import re
from dataclasses import dataclass

from caldera.annotations.noun_phrases import ARTICLES, FUNCTION_WORDS, NOUNS, VERBS, word_set
from caldera.instructions.caption_words import TOKEN

_CLAUSE_NEGATIONS = word_set(
    """
    no not never nobody no-one nothing none neither nor nowhere cannot hardly barely scarcely isnt arent wasnt werent
    doesnt didnt dont hasnt havent hadnt wont cant wouldnt couldnt shouldnt isn aren wasn weren doesn didn hasn haven
    hadn wouldn couldn shouldn
    """
)
"""Words that deny the rest of their clause, as do those in n't."""

_PHRASE_NEGATIONS = word_set(
    "without lacking lacks lack missing minus except excluding unlike absent absence zero"
)
"""Words that deny the noun phrase after them."""

_PAIRED_NEGATIONS = frozenset(
    {
        ("instead", "of"), ("rather", "than"), ("other", "than"), ("free", "of"), ("devoid", "of"), ("empty", "of"),
        ("with", "no"), ("has", "no"), ("have", "no"), ("had", "no"), ("having", "no"), ("wearing", "no"),
    }
)  # fmt: skip
"""Pairs of words that deny the noun phrase after them."""

_AFFIRMING = word_set("only just merely")
"""Words after which a negation denies nothing: 'not only a dog'."""

_CLAUSE_STARTS = word_set("but while although though yet whereas because")

_ABBREVIATION = re.compile(r"\bw/o\b", re.IGNORECASE)

_PUNCTUATION = frozenset(".,;:!?")
_CLAUSE_ENDS = _CLAUSE_STARTS | _PUNCTUATION

_PRESENCE = word_set("nowhere there here visible present seen shown pictured around anywhere sight")
"""Words of denials that deny what comes before too: 'the dog is not there'; so does a negation of nothing after it."""

_PHRASE_WORDS = ARTICLES | word_set("any some other another of or nor and much many")
"""Function words within a denied phrase: 'without any hats or gloves'."""

_UNFINISHED = ARTICLES | word_set(
    """
    and or nor but of with at from into than via per if when where whereas because although though until is are was were
    be been am has have had would should could
    """
)
"""Words that no sentence ends with."""


@dataclass(frozen=True, slots=True)
class Claims:
    """Parts of a caption."""

    stated: str
    denied: str


def split_claims(caption: str) -> Claims:
    """Return what a caption states and what it denies; a question does neither.

    'A man without a hat rides a horse' -> 'A man rides a horse', 'without a hat'
    """
    if "?" in caption:
        return Claims("", "")
    tokens = TOKEN.findall(_ABBREVIATION.sub("without", caption))
    lower = [token.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'") for token in tokens]
    stated: list[str] = []
    denied: list[str] = []
    index = clause_start = 0
    while index < len(tokens):
        end = _denied_end(lower, index)
        if end == index:
            stated.append(tokens[index])
            index += 1
            clause_start = len(stated) if lower[index - 1] in _CLAUSE_ENDS else clause_start
            continue
        if end == index + 1 or _PRESENCE & {*lower[index:end]}:
            denied += stated[clause_start:]
            del stated[clause_start:]
        denied += tokens[index:end]
        index = end
    return Claims(" ".join(stated) if denied else caption, " ".join(denied))


def is_statement(caption: str) -> bool:
    """Return whether a caption is no question and breaks off nowhere, as 'a dog and a' and 'a group of of dogs' do."""
    words = TOKEN.findall(caption.lower())
    return "?" not in words and not any(map(_breaks_off, words, [*words[1:], "."]))


def _breaks_off(word: str, following: str) -> bool:
    """Return whether a text is broken between two words."""
    if word == following:
        return word in FUNCTION_WORDS
    if word in ARTICLES and following in _UNFINISHED:
        return True
    return word in _UNFINISHED and following in _PUNCTUATION


def _denied_end(lower: list[str], index: int) -> int:
    """Return the end of what the word at `index` denies; `index` if it denies nothing."""
    word, following = lower[index], lower[index + 1] if index + 1 < len(lower) else ""
    if following in _AFFIRMING:
        return index
    if (word, following) in _PAIRED_NEGATIONS:
        return _phrase_end(lower, index + 2)
    if word in _PHRASE_NEGATIONS:
        return _phrase_end(lower, index + 1)
    if word in _CLAUSE_NEGATIONS or word.endswith("n't"):
        return _clause_end(lower, index + 1)
    return index


def _clause_end(lower: list[str], start: int) -> int:
    """Return the end of a clause; a comma does not end it if 'or' follows: 'no dogs, cats or birds'."""
    for index in range(start, len(lower)):
        word = lower[index]
        is_list = word == "," and {"or", "nor"} & {*lower[index:]}
        if word in _CLAUSE_ENDS and not is_list:
            return index
    return len(lower)


def _phrase_end(lower: list[str], start: int) -> int:
    """Return the end of a noun phrase, or of a clause that begins with a verb: 'without touching the ground'."""
    end = _clause_end(lower, start)
    if start < end and _is_progressive(lower[start]):
        return end
    for index in range(start, end):
        word = lower[index]
        joins_other = (
            word == "and" and lower[index + 1 : index + 2] and lower[index + 1] in ARTICLES
        )
        is_function_word = word in FUNCTION_WORDS and word not in _PHRASE_WORDS
        if joins_other or is_function_word or word in VERBS or _is_progressive(word):
            return index
    return end


def _is_progressive(word: str) -> bool:
    return word.endswith("ing") and word not in NOUNS
