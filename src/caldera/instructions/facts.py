"""An annotated image in, the certain facts about it out.

Boxes determine which objects are present, how many and where; captions determine colors and the setting, and veto what
the boxes seem to exclude. Whatever the annotations leave open is not a fact.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from caldera.annotations.annotated_image import AnnotatedImage, Instance
from caldera.annotations.boxes import Relation, position_of, relations
from caldera.annotations.english import PLURAL_ONLY, plural
from caldera.instructions.caption_claims import split_claims
from caldera.instructions.coco_knowledge import (
    CATEGORIES_WITH_PURPOSE,
    COLORS,
    GROUPED,
    OTHER_NAMES,
    SETTINGS,
    mentioned_categories,
)

_MIN_AREA = 0.004
"""Minimum fraction of the image that a box covers for questions about its object."""

_MAX_COUNT = 6

_SETTING_NAMES = "|".join(sorted(SETTINGS, key=len, reverse=True))
_SETTING = re.compile(
    rf"(?:\b(?:in|on|at) (?:an? |the )?({_SETTING_NAMES})\b|^(?:an? )?({_SETTING_NAMES}) (?:with|scene)\b)",
    re.IGNORECASE,
)
"""Settings of captions: 'in the snow', 'A kitchen with'."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Certain facts about one image, to ask about."""

    present: tuple[str, ...]
    """Categories that are clearly visible, in the order of their first box."""

    absent: tuple[str, ...]
    """Labeled categories without a box that no caption may refer to."""

    possible: frozenset[str]
    """Categories that a box, however small, or any word of a caption may refer to."""

    counts: dict[str, int]
    """Number of objects of each category that can be counted."""

    positions: dict[str, str]
    """Position of each category with a single object, if that is in one ninth of the image."""

    instances: tuple[tuple[str, str], ...]
    """Every object that is in one ninth of the image, as (category, position)."""

    relations: tuple[tuple[str, Relation, str], ...]
    """Pairs of categories with a single object each, and the relation of the first to the second."""

    colors: dict[str, str]
    """Color of each category that the captions give one color."""

    setting: str | None
    """Setting that the captions agree on."""


def derive_facts(image: AnnotatedImage, categories: Iterable[str]) -> Facts:
    """Return the facts about `image`; `categories` are all that its annotators labeled."""
    by_category: dict[str, list[Instance]] = defaultdict(list)
    for instance in image.instances:
        by_category[instance.category].append(instance)
    visible = {
        category: instances
        for category, instances in by_category.items()
        if max(instance.box.area for instance in instances) >= _MIN_AREA
    }
    counts = {
        category: len(instances)
        for category, instances in visible.items()
        if len(instances) <= _MAX_COUNT
        and category not in PLURAL_ONLY | image.uncounted
        and all(not instance.is_crowd and instance.box.area >= _MIN_AREA for instance in instances)
    }
    single = {category: visible[category][0] for category, count in counts.items() if count == 1}
    positions = {category: position_of(instance.box) for category, instance in single.items()}
    labeled = tuple(categories)
    vocabulary = frozenset({*labeled, *OTHER_NAMES, *CATEGORIES_WITH_PURPOSE, *GROUPED})
    mentioned = mentioned_categories("\n".join(image.captions), vocabulary)
    stated = tuple(split_claims(text).stated for text in image.captions)
    possible = mentioned | by_category.keys() | image.uncounted
    return Facts(
        present=tuple(visible),
        absent=tuple(category for category in labeled if category not in possible),
        possible=possible,
        counts=counts,
        positions={category: position for category, position in positions.items() if position},
        instances=tuple(
            (category, position)
            for category in counts
            for instance in visible[category]
            if (position := position_of(instance.box))
        ),
        relations=tuple(
            (category, relation, other_category)
            for category, instance in single.items()
            for other_category, other_instance in single.items()
            if category != other_category
            for relation in relations(instance.box, other_instance.box)
        ),
        colors=_colors(stated, counts),
        setting=_setting(stated),
    )


def _colors(captions: tuple[str, ...], counts: dict[str, int]) -> dict[str, str]:
    """Return the color of each category to which captions give exactly one."""
    colors = {}
    for category, count in counts.items():
        noun = category if count == 1 else plural(category)
        pattern = _color_pattern(noun)
        mentioned = {color.lower() for text in captions for color in pattern.findall(text)}
        if len(mentioned) == 1:
            [colors[category]] = mentioned
    return colors


@cache
def _color_pattern(noun: str) -> re.Pattern[str]:
    """Return a pattern for the color directly before a noun, unless it is one of several colors."""
    colors = "|".join(COLORS)
    return re.compile(
        rf"(?<!and )(?<!or )(?<!, )(?<!& )(?<![-/&])\b({colors}) {re.escape(noun)}\b",
        re.IGNORECASE,
    )


def _setting(captions: tuple[str, ...]) -> str | None:
    """Return the setting if at least two captions mention it and none mentions another."""
    counts = Counter(
        setting
        for text in captions
        for setting in {(inside or opening).lower() for inside, opening in _SETTING.findall(text)}
    )
    if len(counts) != 1:
        return None
    [(setting, count)] = counts.items()
    return setting if count >= 2 else None
