"""Noun phrases of English captions, found by function words and frequent verbs.

LLaVA's authors found phrases with spaCy. Here a phrase is a run of words without punctuation or a function word between
them (articles, prepositions, pronouns, auxiliary and frequent verbs). A word in -ing or -ed is a verb and ends the run
if a function word follows ("wearing a hat"), else a part of the phrase ("wedding dress"). A word between a phrase and
an article is a verb ("the waiter pours a glass"). Adverbs in -ly and numerals are ignored. Only the last words of a
long run count. docs/data.md has the measured precision of the rule.
"""

import re

MAX_WORDS = 4
"""Maximum number of words of a phrase; of a longer run the last ones are used."""

_WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*|[^\s\w]")


def word_set(text: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(text.split())


FUNCTION_WORDS = word_set(
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
"""Words that separate phrases."""

VERBS = word_set(
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
"""Frequent verbs of captions; they end a phrase unless an article precedes them ("a look", "the watch")."""

NOUNS = word_set(
    """
    building painting drawing ceiling clothing lighting railing wedding evening morning string spring clearing
    crossing earring sibling duckling pudding topping icing dressing stocking awning landing parking swing thing
    sling sting king wing ring meeting opening ending fencing bedding flooring siding setting gathering living
    bed seed weed shed sled breed reed feed steed red moped hundred family butterfly
    dragonfly lily jelly belly italy assembly
    """
)
"""Words in -ing and -ed that are not verbs, and in -ly that are not adverbs."""

ARTICLES = word_set("a an the his her its their my your our")

_COLORS = word_set(
    """
    black white red green blue yellow brown orange pink purple grey gray silver gold golden tan beige
    """
)
"""Words that are no phrase by themselves: 'a red and white shirt' is one object."""

_PLURALS = dict(
    pair.split("=")
    for pair in word_set(
        """
        people=person men=man women=woman children=child feet=foot mice=mouse teeth=tooth geese=goose knives=knife
        leaves=leaf shelves=shelf wolves=wolf loaves=loaf wives=wife calves=calf buses=bus movies=movie cookies=cookie
        selfies=selfie hoodies=hoodie brownies=brownie
        """
    )
)
"""Singulars of irregular plurals."""

_SINGULAR = word_set(
    """
    always bus canvas christmas clothes gas glasses grass jeans lens pants plus scissors series shorts skis
    sunglasses tennis texas
    """
)
"""Words in -s that are not plurals, or have no singular."""

_ES = ("ches", "shes", "sses", "xes", "zzes", "toes")
"""Endings of plurals in -es; other plurals only lose the s."""


def singular(noun: str) -> str:
    """Return a noun's singular: 'dogs' -> 'dog', 'boxes' -> 'box', 'ponies' -> 'pony', 'people' -> 'person'."""
    if noun in _PLURALS:
        return _PLURALS[noun]
    if noun in _SINGULAR or len(noun) < 4:
        return noun
    if not noun.endswith("s") or noun.endswith(("ss", "us", "is")):
        return noun
    if noun.endswith("ies") and len(noun) > 4:
        return f"{noun[:-3]}y"
    return noun[:-2] if noun.endswith(_ES) else noun[:-1]


def noun_phrases(text: str) -> list[str]:
    """Return the noun phrases of a text in order, in lower case, the last word in the singular.

    'Two small dogs are running on the wet grass.' -> ['small dog', 'wet grass']
    """
    words = _WORD.findall(text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))
    phrases: list[str] = []
    run: list[str] = []
    for before, word, after in zip(["", *words], words, [*words[1:], ""], strict=False):
        if _is_boundary(before, word, after) or (run and after in ARTICLES):
            _emit_phrase(run, phrases)
        elif not word.isdigit():
            run.append(word)
    _emit_phrase(run, phrases)
    return phrases


def _emit_phrase(run: list[str], phrases: list[str]) -> None:
    """Append a run as a phrase and clear it."""
    if run and not (len(run) == 1 and run[0] in _COLORS):
        phrases.append(" ".join((*run[-MAX_WORDS:-1], singular(run[-1]))))
    run.clear()


def _is_boundary(before: str, word: str, after: str) -> bool:
    """Return whether a word separates phrases."""
    if word.partition("'")[0] in FUNCTION_WORDS or not word[0].isalnum():
        return True
    if word in NOUNS:
        return False
    if word.endswith("ly") and len(word) > 4:
        return True
    if before in ARTICLES:
        return False
    if word in VERBS:
        return True
    verbal = word.endswith(("ed", "ing"))
    return verbal and (after in FUNCTION_WORDS or not after or not after[0].isalnum())
