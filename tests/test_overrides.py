"""`--set NAME=VALUE`: a value of the right kind gets through, all else is answered in one line."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caldera.errors import UnknownNameError, UsageError
from caldera.overrides import apply_overrides
from caldera.recipes.registry import RECIPES, find_recipe


@dataclass(frozen=True)
class Inner:
    """A group of settings."""

    rate: float = 0.5
    steps: int = 3

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if self.steps < 0:
            raise UsageError(f"steps is {self.steps}; it must not be negative")


@dataclass(frozen=True)
class Outer:
    """A field of every kind."""

    name: str = "a"
    quick: bool = False
    folder: Path = Path("here")
    limit: int | None = None
    share: float | None = None
    title: str | None = None
    parts: tuple[str, ...] = ("one",)
    betas: tuple[float, float] = (0.9, 0.999)
    inner: Inner = field(default_factory=Inner)
    more: Inner | None = None
    names: tuple[str, ...] = ()
    color: Literal["red", "blue"] | None = None


@pytest.mark.parametrize(
    ("assignment", "name", "value"),
    [
        ("name=b", "name", "b"),
        ("name=3", "name", "3"),
        ("name=a=b", "name", "a=b"),
        ("name=", "name", ""),
        (" name = b ", "name", "b"),
        ("quick=true", "quick", True),
        ("quick=False", "quick", False),
        ("folder=/x/y", "folder", Path("/x/y")),
        ("limit=7", "limit", 7),
        ("limit=none", "limit", None),
        ("title=3", "title", "3"),
        ("title=none", "title", None),
        ("share=0.25", "share", 0.25),
        ("share=1", "share", 1.0),
        ("parts=one,two, three", "parts", ("one", "two", "three")),
        ("parts=one", "parts", ("one",)),
        ("betas=0.8,0.9", "betas", (0.8, 0.9)),
        ("betas=(0, 1)", "betas", (0.0, 1.0)),
        ("inner.rate=2", "inner", Inner(rate=2.0)),
        ("inner.steps=7", "inner", Inner(steps=7)),
        ("more.steps=7", "more", Inner(steps=7)),
        ("more=on", "more", Inner()),
        ("more=none", "more", None),
        ("names=one,two", "names", ("one", "two")),
        ("names=one", "names", ("one",)),
        ("colour=blue", "colour", "blue"),
        ("colour=none", "colour", None),
    ],
)
def test_a_value_is_read_as_the_kind_its_field_has(
    assignment: str, name: str, value: object
) -> None:
    """The one field is changed, to the very type, and nothing else is."""
    changed = apply_overrides(Outer(), [assignment])
    found = getattr(changed, name)
    assert found == value
    assert type(found) is type(value)
    others = [each for each in Outer.__dataclass_fields__ if each != name]
    assert all(getattr(changed, each) == getattr(Outer(), each) for each in others)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("quick", "--set quick has no '='; write --set NAME=VALUE"),
        ("quik=true", "no setting of Outer is called 'quik'; did you mean 'quick'?"),
        ("inner.step=1", "no setting of Inner is called 'step'; did you mean 'steps'?"),
        ("inner=1", "inner is a group of settings; name one of them, as inner.NAME"),
        ("inner.=1", "inner. is a group of settings"),
        ("inner=none", "inner is a group of settings; name one of them, as inner.NAME"),
        ("more=1", "name one of them, as more.NAME, or more=on, more=none"),
        ("more.step=1", "no setting of Inner is called 'step'; did you mean 'steps'?"),
        ("more.steps=-1", "steps is -1; it must not be negative"),
        ("names=1", "names=1 does not fit: it is a tuple[str, ...], now ()"),
        ("name.x=1", "name.x does not exist; name is a single setting"),
        ("quick=1", "quick=1 does not fit: it is a bool, now False"),
        ("quick=yes", "quick=yes does not fit"),
        ("inner.steps=1.5", "inner.steps=1.5 does not fit: it is a int, now 3"),
        ("inner.steps=", "inner.steps= does not fit"),
        ("inner.steps=08", "inner.steps=08 does not fit"),
        ("inner.steps=none", "inner.steps=none does not fit"),
        ("inner.rate=fast", "inner.rate=fast does not fit: it is a float, now 0.5"),
        ("inner.rate=nan", "inner.rate=nan does not fit"),
        ("limit=1.5", "limit=1.5 does not fit: it is a int | None, now None"),
        ("betas=0.9", "betas=0.9 does not fit"),
        ("betas=0.9,0.8,0.7", "betas=0.9,0.8,0.7 does not fit"),
        ("parts=1", "parts=1 does not fit"),
        ("inner.steps=-1", "steps is -1; it must not be negative"),
    ],
)
def test_what_does_not_fit_is_answered_in_one_line(assignment: str, message: str) -> None:
    """The name, the value, what the field is, and what it is now."""
    with pytest.raises(UsageError) as caught:
        apply_overrides(Outer(), [assignment])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_group_that_is_on_keeps_its_settings_and_can_be_switched_off() -> None:
    """`on` does not reset it, a second setting joins the first, and `none` removes it; so it is with text."""
    changed = apply_overrides(Outer(), ["more.steps=7", "more=on", "more.rate=2"])
    assert changed.more == Inner(steps=7, rate=2.0)
    assert apply_overrides(changed, ["more=none"]).more is None
    assert apply_overrides(Outer(title="a"), ["title=none"]).title is None


def test_later_settings_win_and_the_old_object_stays() -> None:
    """Settings are applied in order to copies."""
    outer = Outer()
    changed = apply_overrides(outer, ["inner.steps=1", "inner.rate=0.1", "inner.steps=2"])
    assert changed.inner == Inner(rate=0.1, steps=2)
    assert outer == Outer()
    assert apply_overrides(outer, []) is outer


@given(text=st.text(max_size=20), name=st.sampled_from(["quick", "limit", "share", "inner.rate"]))
def test_no_text_breaks_the_reading(text: str, name: str) -> None:
    """Whatever is typed, a setting keeps its kind or a UsageError says why not."""
    try:
        changed = apply_overrides(Outer(), [f"{name}={text}"])
    except UsageError:
        return
    assert type(changed.quick) is bool
    assert type(changed.limit) in (int, type(None))
    assert type(changed.share) in (float, type(None))
    assert type(changed.inner.rate) is float


@pytest.mark.parametrize("text", ["(" * 5000, "9" * 5000, "1e999999999", "-" * 5000 + "1"])
def test_monstrous_numbers_and_nestings_are_refused(text: str) -> None:
    """What Python's own reader gives up on does not get through as a number of steps."""
    with pytest.raises(UsageError, match="does not fit"):
        apply_overrides(Outer(), [f"inner.steps={text}"])


@pytest.mark.parametrize("name", RECIPES)
def test_the_settings_of_every_recipe_are_reached_by_name(name: str) -> None:
    """A group inside a recipe, and a name that is nearly right."""
    recipe = find_recipe(name)
    assert apply_overrides(recipe, ["finetune.batch_size=5"]).finetune.batch_size == 5
    with pytest.raises(UnknownNameError, match="did you mean 'batch_size'"):
        apply_overrides(recipe, ["finetune.batchsize=5"])
