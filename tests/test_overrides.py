"""Tests of `--set NAME=VALUE`: a value of the field's type is applied, anything else fails with one line."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caldera.errors import UnknownNameError, UsageError
from caldera.evaluation.answerers.answerer import AnswerConfig
from caldera.images.processor import ImageProcessor
from caldera.inference.engine import EngineConfig
from caldera.llm_client.client import RequestConfig
from caldera.model.lora_config import LoraConfig
from caldera.overrides import (
    RENAMED,
    SYNONYMS,
    apply_overrides,
    with_current_names,
    with_former_names,
)
from caldera.recipes.papers import DatasetInfo, PaperRecipe
from caldera.recipes.recipe import QuestionCounts
from caldera.recipes.registry import RECIPES, find_recipe
from caldera.server.api.config import Limits, ServerConfig
from caldera.server.media.loader import MediaConfig
from caldera.training.hyperparameters import Stage


@dataclass(frozen=True)
class Inner:
    """A group of settings."""

    rate: float = 0.5
    steps: int = 3

    def __post_init__(self) -> None:
        """Check the number of steps."""
        if self.steps < 0:
            raise UsageError(f"steps is {self.steps}; it must not be negative")


@dataclass(frozen=True)
class Outer:
    """A field of every type."""

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
        ("color=blue", "color", "blue"),
        ("color=none", "color", None),
    ],
)
def test_a_value_is_parsed_as_the_type_of_its_field(
    assignment: str, name: str, value: object
) -> None:
    """Only that field changes, and the new value has exactly the expected type."""
    changed = apply_overrides(Outer(), [assignment])
    actual = getattr(changed, name)
    assert actual == value
    assert type(actual) is type(value)
    rest = [other for other in Outer.__dataclass_fields__ if other != name]
    assert all(getattr(changed, other) == getattr(Outer(), other) for other in rest)


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
        ("names=1", "names=1 does not fit: expected tuple[str, ...], currently ()"),
        ("name.x=1", "name.x does not exist; name is a single setting"),
        ("quick=1", "quick=1 does not fit: expected bool, currently False"),
        ("quick=yes", "quick=yes does not fit"),
        ("inner.steps=1.5", "inner.steps=1.5 does not fit: expected int, currently 3"),
        ("inner.steps=", "inner.steps= does not fit"),
        ("inner.steps=08", "inner.steps=08 does not fit"),
        ("inner.steps=none", "inner.steps=none does not fit"),
        ("inner.rate=fast", "inner.rate=fast does not fit: expected float, currently 0.5"),
        ("inner.rate=nan", "inner.rate=nan does not fit"),
        ("limit=1.5", "limit=1.5 does not fit: expected int | None, currently None"),
        ("betas=0.9", "betas=0.9 does not fit"),
        ("betas=0.9,0.8,0.7", "betas=0.9,0.8,0.7 does not fit"),
        ("parts=1", "parts=1 does not fit"),
        ("inner.steps=-1", "steps is -1; it must not be negative"),
    ],
)
def test_an_invalid_override_fails_with_one_line(assignment: str, message: str) -> None:
    """The message gives the name, the value, the field's type and its current value."""
    with pytest.raises(UsageError) as caught:
        apply_overrides(Outer(), [assignment])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_optional_group_can_be_switched_on_changed_and_switched_off() -> None:
    """`on` does not reset the group, a second setting is added to the first, and `none` removes the group."""
    changed = apply_overrides(Outer(), ["more.steps=7", "more=on", "more.rate=2"])
    assert changed.more == Inner(steps=7, rate=2.0)
    assert apply_overrides(changed, ["more=none"]).more is None
    assert apply_overrides(Outer(title="a"), ["title=none"]).title is None


def test_later_overrides_win_and_the_original_is_unchanged() -> None:
    """Overrides are applied in order, to copies."""
    outer = Outer()
    changed = apply_overrides(outer, ["inner.steps=1", "inner.rate=0.1", "inner.steps=2"])
    assert changed.inner == Inner(rate=0.1, steps=2)
    assert outer == Outer()
    assert apply_overrides(outer, []) is outer


@given(text=st.text(max_size=20), name=st.sampled_from(["quick", "limit", "share", "inner.rate"]))
def test_any_text_gives_a_value_of_the_right_type_or_a_usage_error(text: str, name: str) -> None:
    """No text changes the type of a setting or raises another exception."""
    try:
        changed = apply_overrides(Outer(), [f"{name}={text}"])
    except UsageError:
        return
    assert type(changed.quick) is bool
    assert type(changed.limit) in (int, type(None))
    assert type(changed.share) in (float, type(None))
    assert type(changed.inner.rate) is float


@pytest.mark.parametrize("text", ["(" * 5000, "9" * 5000, "1e999999999", "-" * 5000 + "1"])
def test_text_that_overflows_the_python_parser_is_rejected(text: str) -> None:
    """Deep nesting and huge numbers are not accepted as a number of steps."""
    with pytest.raises(UsageError, match="does not fit"):
        apply_overrides(Outer(), [f"inner.steps={text}"])


@pytest.mark.parametrize("name", RECIPES)
def test_settings_of_every_recipe_can_be_overridden(name: str) -> None:
    """A setting of a group is changed, and a misspelled one answers with the nearest."""
    recipe = find_recipe(name)
    assert apply_overrides(recipe, ["finetune.batch_size=5"]).finetune.batch_size == 5
    with pytest.raises(UnknownNameError, match="did you mean 'batch_size'"):
        apply_overrides(recipe, ["finetune.batchsize=5"])


def test_a_former_name_is_answered_with_the_current_one() -> None:
    """Renamed settings fail with the new name, also where the spelling is not close."""
    recipe = find_recipe(next(iter(RECIPES)))
    with pytest.raises(UsageError, match="'validate_every'; did you mean 'eval_every'"):
        apply_overrides(recipe, ["finetune.validate_every=5"])
    with pytest.raises(UsageError, match="'queue'; did you mean 'max_waiting'"):
        apply_overrides(EngineConfig(), ["queue=5"])


@pytest.mark.parametrize(
    ("other", "current"),
    [
        ("lr", "learning_rate"),
        ("BS", "batch_size"),
        ("num-epochs", "epochs"),
        ("lora_r", "lora.rank"),
    ],
)
def test_a_name_of_other_tools_is_answered_with_the_current_one(other: str, current: str) -> None:
    """Short names and those of LLaVA and transformers, in any case, with dashes or underscores."""
    with pytest.raises(UsageError, match=f"'{other}'; did you mean '{current}'"):
        apply_overrides(find_recipe("demo").finetune, [f"{other}=5"])


@pytest.mark.parametrize("name", ["lr", "learning_rate"])
def test_a_setting_without_its_group_is_answered_with_every_group_that_has_it(name: str) -> None:
    """Both stages of a recipe have a learning rate."""
    expected = "did you mean 'pretrain.learning_rate' or 'finetune.learning_rate'"
    with pytest.raises(UsageError, match=expected):
        apply_overrides(find_recipe("demo"), [f"{name}=5"])


def test_every_current_name_in_the_table_of_renamed_settings_exists() -> None:
    """No entry of the table suggests a setting that is in no config."""
    configs = (
        Stage,
        PaperRecipe,
        DatasetInfo,
        QuestionCounts,
        ImageProcessor,
        EngineConfig,
        Limits,
        ServerConfig,
        MediaConfig,
        AnswerConfig,
        RequestConfig,
    )
    names = {name for config in configs for name in config.__dataclass_fields__}
    assert set(RENAMED.values()) <= names
    groups = names | {*LoraConfig.__dataclass_fields__}
    assert {part for name in SYNONYMS.values() for part in name.split(".")} <= groups
    assert not SYNONYMS.keys() & names
    assert len(RENAMED) == len(set(RENAMED.values())) > 30


def test_stored_settings_convert_between_former_and_current_names() -> None:
    """Names are replaced at any depth, values are not, and the conversion is reversible."""
    former = {"pretrain": {"trains": ["projector"], "warmup_fraction": 0.1}, "seed": 1}
    current = {"pretrain": {"trainable": ["projector"], "warmup_ratio": 0.1}, "seed": 1}
    assert with_current_names(former) == current
    assert with_former_names(current) == former
