"""Questions about what the captions of an image agree on."""

import random
import re
from collections.abc import Mapping, Sequence
from itertools import takewhile

from caldera.annotations.annotated_image import AnnotatedImage
from caldera.annotations.english import article, join_with_and, sentence
from caldera.annotations.noun_phrases import FUNCTION_WORDS, NOUNS, singular, word_set
from caldera.instructions.caption_agreement import Agreement
from caldera.instructions.caption_claims import split_claims
from caldera.instructions.caption_clauses import Clause
from caldera.instructions.caption_words import content_keys, normalize_caption, stem, word_key
from caldera.instructions.coco_knowledge import OTHER_NAMES
from caldera.instructions.facts import Facts
from caldera.instructions.questions import Question, quantity_phrase
from caldera.instructions.situations import NO_REAL_SCENE, SITUATIONS, Situation

_WITH_OBJECT = word_set(
    "holding wearing riding eating carrying throwing catching pushing pulling drinking reading swinging flying chasing "
    "kicking cutting feeding watching playing climbing driving hitting"
)
"""Verbs whose object one may ask for."""

_OBJECTS_OF_VERBS: Mapping[str, tuple[str, ...]] = {
    "holding": (
        "umbrella",
        "cell phone",
        "book",
        "cup",
        "bottle",
        "kite",
        "frisbee",
        "baseball bat",
        "tennis racket",
    ),
    "riding": ("bicycle", "motorcycle", "horse", "skateboard", "surfboard", "elephant"),
    "eating": ("pizza", "sandwich", "banana", "apple", "cake", "hot dog", "donut", "carrot"),
    "carrying": ("backpack", "suitcase", "umbrella", "handbag", "surfboard", "skis"),
}
"""Categories that suit a verb, for a claim that is false."""

_MAX_PARTS = 3
"""Maximum number of words of an object: 'a red tennis ball'."""

_ENDS_OBJECT = FUNCTION_WORDS | frozenset(",;:")

_NOUN_PHRASE = re.compile(r"\b(?:an?|the|some|several|two|three|four|five|many)(?: [a-z-]+){1,4}")
"""A determiner and the words after it."""

_NO_EVIDENCE = word_set("group couple crowd family number pair herd bunch lot stack pile team")

_NAMES_OF_KINDS = word_set(
    "zoo baseball tennis train airport christmas wedding race soccer football fishing surf"
)
"""Nouns that name a place or an event as part of another: 'a zoo enclosure'."""

_MASS_NOUNS = word_set("grass snow food water sand luggage traffic fruit music")


def action_questions(
    agreement: Agreement, facts: Facts, rng: random.Random
) -> list[list[Question]]:
    """Ask what people and animals do: groups of a question, or of a true and a false claim."""
    groups: list[list[Question]] = []
    subjects = set()
    for clause in agreement.actions:
        if clause.name in subjects:
            continue
        subjects.add(clause.name)
        verb, object_phrase = _verb_and_object(clause, agreement)
        claims = _claims(clause, verb, object_phrase, facts, rng) if object_phrase else []
        if claims and rng.random() < 0.5:
            groups.append(claims)
        else:
            groups.append([_action_question(clause, verb, object_phrase)])
    return groups


def _action_question(clause: Clause, verb: str, object_phrase: str) -> Question:
    """Ask what a subject does, or for the object of what it does."""
    answer = sentence(clause.sentence_about(clause.definite_subject))
    subject = f"{clause.verb} {clause.definite_subject}"
    if object_phrase:
        short = _without_article(object_phrase)
        return Question("action", f"what {verb}", f"What {subject} {verb}?", short, answer)
    short = (
        " ".join(_until_boundary(clause.predicate.split(), 1))
        if clause.form == "progressive"
        else ""
    )
    return Question("action", "what doing", f"What {subject} doing?", short, answer)


def _verb_and_object(clause: Clause, agreement: Agreement) -> tuple[str, str]:
    """Return the verb in -ing and its object with its article; empty where there is none that others support."""
    words = clause.predicate.split()
    if clause.form == "is":
        words = words[1:]
    if len(words) < 2 or words[0] not in _WITH_OBJECT:
        return "", ""
    object_words = _until_boundary(words, 1, keep_articles=True)[1:]
    is_measure = words[len(object_words) + 1 :][:1] == ["of"]
    if not object_words or is_measure or content_keys(object_words[-1])[:1] == []:
        return "", ""
    noun = content_keys(object_words[-1])[0]
    is_supported = noun in agreement.supported and object_words[0] not in (
        "his",
        "her",
        "their",
        "its",
    )
    return (
        (words[0], " ".join(object_words))
        if is_supported and len(object_words) <= _MAX_PARTS + 1
        else ("", "")
    )


def _until_boundary(words: Sequence[str], start: int, *, keep_articles: bool = False) -> list[str]:
    """Return words up to the first function word or punctuation after `start`; an article may begin the rest."""
    end = start
    if (
        keep_articles
        and end < len(words)
        and words[end].lower() in ("a", "an", "the", "some", "two", "three")
    ):
        end += 1
    while end < len(words):
        word = words[end].lower()
        if word.strip(",;:.") in _ENDS_OBJECT or (end > start and word.endswith("ing")):
            break
        end += 1
        if word[-1] in ",;:.":
            break
    return [word.strip(",;:.") for word in words[:end]]


def _without_article(phrase: str) -> str:
    return re.sub(r"^(?:an?|the|some) ", "", phrase)


def _claims(
    clause: Clause, verb: str, object_phrase: str, facts: Facts, rng: random.Random
) -> list[Question]:
    """Return a true and a false claim about the object of what a subject does; none if none is surely false."""
    absent = [name for name in _OBJECTS_OF_VERBS.get(verb, ()) if name in facts.absent]
    if not absent or (verb != "eating" and word_key(clause.head) != "person"):
        return []
    subject = f"{clause.verb} {clause.definite_subject}"
    true = f"{clause.definite_subject} {clause.verb} {verb} {object_phrase}"
    wrong = article(rng.choice(absent))
    return [
        Question(
            "action",
            "is it doing",
            f"{sentence(f'{subject} {verb} {object_phrase}?')}",
            "yes",
            f"Yes, {true}.",
        ),
        Question(
            "action",
            "is it doing",
            f"{sentence(f'{subject} {verb} {wrong}?')}",
            "no",
            f"No, {true}.",
        ),
    ]


def situation_questions(
    image: AnnotatedImage, agreement: Agreement, facts: Facts, rng: random.Random
) -> list[Question]:
    """Ask about every situation whose needs are met by words that captions agree on, or by boxes."""
    captions = [normalize_caption(text).lower() for text in image.captions]
    if any(NO_REAL_SCENE & {*text.split()} for text in captions):
        return []
    stated = [split_claims(captions[index]).stated for index in agreement.trusted]
    phrases = _noun_phrases(stated, agreement)
    questions = []
    for situation in SITUATIONS:
        evidence = _evidence_of(situation, phrases, agreement, facts)
        if evidence:
            number = rng.randrange(len(situation.questions))
            answer = situation.answers[number].format(evidence=evidence)
            form = situation.questions[0]
            questions.append(
                Question("reasoning", form, situation.questions[number], "", sentence(answer))
            )
    return questions


def _noun_phrases(texts: Sequence[str], agreement: Agreement) -> dict[str, str]:
    """Return the shortest noun phrase with a determiner for each supported noun, by its key and by its stem.

    A noun that is only part of others stands for them: 'zoo' for 'a zoo enclosure'.
    """
    heads: dict[str, str] = {}
    parts: dict[str, str] = {}
    for text in texts:
        for match in _NOUN_PHRASE.finditer(text):
            determiner, *words = match[0].split()
            nominal = [*takewhile(_is_nominal, words)]
            is_modifier = len(nominal) < len(words) and words[len(nominal)].endswith("ed")
            words = nominal
            if not words or is_modifier or words[-1] in _NO_EVIDENCE:
                continue
            if words[-1] in _MASS_NOUNS:
                determiner = "the"
            is_plural = singular(words[-1]) != words[-1]
            if is_plural == (determiner in ("a", "an")) and determiner != "the":
                continue
            phrase = f"{determiner} {' '.join(words)}"
            for word in words:
                if word != words[-1] and word not in _NAMES_OF_KINDS:
                    continue
                phrases = heads if word == words[-1] else parts
                for key in {word_key(word), stem(word)} & agreement.supported:
                    phrases[key] = min(phrases.get(key, phrase), phrase, key=_by_tone_and_length)
    return {**parts, **heads}


def _by_tone_and_length(phrase: str) -> tuple[bool, int]:
    """Return an order of phrases: plain before colloquial words, then short before long ones."""
    return "guy" in phrase.split(), len(phrase)


def _is_nominal(word: str) -> bool:
    """Return whether a word may belong to a noun phrase."""
    return word not in FUNCTION_WORDS and (word in NOUNS or not word.endswith(("ing", "ed")))


def _evidence_of(
    situation: Situation, phrases: Mapping[str, str], agreement: Agreement, facts: Facts
) -> str:
    """Return what is seen of the needs of a situation; empty if captions do not state each of them.

    What they do not mention may be small, far away, or apart from the rest.
    """
    evidence: dict[str, str] = {}
    for need in situation.needs:
        keys = [
            word_key(word) if word in OTHER_NAMES else stem(word)
            for word in sorted(need - {"people"})
        ]
        supported = [key for key in keys if key in agreement.supported]
        boxed = [category for category in facts.present if category in need]
        several_people = "person" in facts.present and facts.counts.get("person") != 1
        if "people" in need and several_people and word_key("person") in agreement.supported:
            boxed.append("person")
        elif not supported:
            return ""
        phrase_of_key = {key: phrases[key] for key in supported if key in phrases}
        phrase_of_key |= {
            key: key for key in supported if key in _MASS_NOUNS and key not in phrase_of_key
        }
        phrase_of_key |= {
            stem(category): quantity_phrase(facts, category)
            for category in boxed
            if not phrase_of_key
        }
        heads = {phrase.split()[-1] for phrase in evidence.values()}
        if phrase_of_key and not evidence.keys() & phrase_of_key.keys():
            key = next(iter(phrase_of_key))
            if phrase_of_key[key].split()[-1] not in heads:
                evidence[key] = phrase_of_key[key]
    return join_with_and([*evidence.values()]) if evidence else ""
