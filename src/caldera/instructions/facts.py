"""An AnnotatedImage in, what is beyond doubt about it out.

Boxes say what is there, how many and where; captions say colors and the setting, and veto what the boxes seem to
deny. What the annotations leave open is not a fact.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from caldera.annotations.annotated_image import AnnotatedImage, Instance
from caldera.annotations.boxes import Relation, position_of, relations
from caldera.annotations.english import PLURAL_ONLY, plural
from caldera.instructions.coco_knowledge import (
    CATEGORIES_WITH_PURPOSE,
    COLORS,
    GROUPED,
    OTHER_NAMES,
    SETTINGS,
    mentioned_categories,
)

_MIN_AREA = 0.004
"""Share of the image a box must cover for its thing to be worth a question."""

_MAX_COUNT = 6


@dataclass(frozen=True, slots=True)
class Facts:
    """What may be asked about one image, with the answers."""

    present: tuple[str, ...]
    """Categories that are plainly there, in the order of their first box."""

    absent: tuple[str, ...]
    """Categories that were looked for, have no box, and no caption hints at."""

    possible: frozenset[str]
    """Categories that a box, however small, or any word of a caption may mean."""

    counts: dict[str, int]
    """How many there are of each category that can be counted."""

    places: dict[str, str]
    """The place of each category that is there once and stands in one place."""

    instances: tuple[tuple[str, str], ...]
    """Every thing that stands in one place, as (category, place)."""

    relations: tuple[tuple[str, Relation, str], ...]
    """Pairs of things that are there once each, and what the first is to the second."""

    colors: dict[str, str]
    """The color of each category that the captions give one color."""

    setting: str | None
    """Where the captions agree that it is."""


def derive_facts(image: AnnotatedImage, categories: Iterable[str]) -> Facts:
    """Gather the facts about `image`; `categories` are all that its annotators looked for."""
    by_category: dict[str, list[Instance]] = defaultdict(list)
    for thing in image.instances:
        by_category[thing.category].append(thing)
    seen = {
        category: things
        for category, things in by_category.items()
        if max(thing.box.area for thing in things) >= _MIN_AREA
    }
    counts = {
        category: len(things)
        for category, things in seen.items()
        if len(things) <= _MAX_COUNT
        and category not in PLURAL_ONLY
        and all(not thing.is_crowd and thing.box.area >= _MIN_AREA for thing in things)
    }
    single = {category: seen[category][0] for category, count in counts.items() if count == 1}
    places = {category: position_of(thing.box) for category, thing in single.items()}
    looked_for = tuple(categories)
    known = frozenset({*looked_for, *OTHER_NAMES, *CATEGORIES_WITH_PURPOSE, *GROUPED})
    possible = mentioned_categories("\n".join(image.captions), known) | by_category.keys()
    return Facts(
        present=tuple(seen),
        absent=tuple(category for category in looked_for if category not in possible),
        possible=possible,
        counts=counts,
        places={category: place for category, place in places.items() if place},
        instances=tuple(
            (category, place)
            for category in counts
            for thing in seen[category]
            if (place := position_of(thing.box))
        ),
        relations=tuple(
            (one, relation, other)
            for one, first in single.items()
            for other, second in single.items()
            if one != other
            for relation in relations(first.box, second.box)
        ),
        colors=_colors(image.captions, counts),
        setting=_setting(image.captions),
    )


def _colors(captions: tuple[str, ...], counts: dict[str, int]) -> dict[str, str]:
    """Find the categories that captions give a color, all of them the same one."""
    found = {}
    for category, count in counts.items():
        noun = category if count == 1 else plural(category)
        named = Counter(
            match.lower() for text in captions for match in _color_pattern(noun).findall(text)
        )
        if len(named) == 1:
            found[category] = next(iter(named))
    return found


@cache
def _color_pattern(noun: str) -> re.Pattern[str]:
    """Return a pattern that finds the color right before a noun, unless it is one of several colors."""
    colors = "|".join(COLORS)
    return re.compile(
        rf"(?<!and )(?<!or )(?<!, )(?<!& )(?<![-/&])\b({colors}) {re.escape(noun)}\b",
        re.IGNORECASE,
    )


@cache
def _positions() -> re.Pattern[str]:
    """Return a pattern that finds the settings of captions: 'in the snow', 'A kitchen with'."""
    places = "|".join(sorted(SETTINGS, key=len, reverse=True))
    return re.compile(
        rf"(?:\b(?:in|on|at) (?:an? |the )?({places})\b|^(?:an? )?({places}) (?:with|scene)\b)",
        re.IGNORECASE,
    )


def _setting(captions: tuple[str, ...]) -> str | None:
    """Name the setting if at least two captions name one and none names another."""
    named = Counter(
        place
        for text in captions
        for place in {(inside or opening).lower() for inside, opening in _positions().findall(text)}
    )
    if len(named) != 1:
        return None
    [(place, times)] = named.items()
    return place if times >= 2 else None
