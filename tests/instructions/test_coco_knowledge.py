"""The tables about COCO's categories are consistent, and complete enough for real photos."""

from pathlib import Path

import pytest

from caldera.annotations.coco import read_coco
from caldera.files.skipped_items import SkippedItems
from caldera.instructions.coco_knowledge import (
    GROUPED,
    GROUPS,
    OTHER_NAMES,
    PURPOSES,
    SETTINGS,
    Purpose,
    mentioned_categories,
)
from caldera.instructions.facts import derive_facts


@pytest.mark.parametrize("purpose", PURPOSES, ids=lambda purpose: purpose.uses)
def test_a_goal_does_not_mention_a_category_that_serves_it(purpose: Purpose) -> None:
    """Otherwise the question would contain its answer."""
    assert len(purpose.goals) >= 2
    assert not any(mentioned_categories(goal, purpose.categories) for goal in purpose.goals)


def test_purposes_groups_and_settings_are_consistent() -> None:
    """A category is in one group at most; goals and uses are unique."""
    groups = {category: group for group, members in GROUPS.items() for category in members}
    assert len(groups) == sum(map(len, GROUPS.values())) == len(GROUPED)
    assert [groups.get(category) for category in ("dog", "car", "pizza", "person")] == [
        "animal",
        "vehicle",
        "food",
        None,
    ]
    goals = [goal for purpose in PURPOSES for goal in purpose.goals]
    assert len(set(goals)) == len(goals)
    assert len({purpose.uses for purpose in PURPOSES}) == len(PURPOSES)
    assert set(SETTINGS.values()) == {"in", "on", "at"}


def test_all_names_are_categories_of_coco(third_party: Path) -> None:
    """Every name in the tables is one of COCO's 80, and there are facts about real photos."""
    annotations = read_coco(third_party / "coco_mini", SkippedItems())
    served = {category for purpose in PURPOSES for category in purpose.categories}
    assert {*OTHER_NAMES, *GROUPED, *served} <= set(annotations.categories)
    facts = [derive_facts(image, annotations.categories) for image in annotations.images]
    assert all(image_facts.absent for image_facts in facts)
    assert sum(len(image_facts.present) > 0 for image_facts in facts) > 75
    assert sum(image_facts.setting is not None for image_facts in facts) > 5
