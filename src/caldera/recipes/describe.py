"""Recipes in, what `caldera recipes` shows of them out: sizes, data, and each setting beside the paper's."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from caldera.files.atomic import to_plain_json
from caldera.recipes.citations import CITATIONS, RECIPE_FIELDS, STAGE_FIELDS, Cited
from caldera.recipes.papers import DatasetInfo, PaperRecipe
from caldera.recipes.recipe import Recipe, SceneRecipe
from caldera.recipes.registry import PAPER_RECIPES
from caldera.recipes.towers import (
    num_language_parameters,
    num_projector_parameters,
    num_vision_parameters,
)
from caldera.training.stage import Stage


@dataclass(frozen=True, slots=True)
class RecipeField:
    """One field of a recipe beside what a paper says of it."""

    name: str
    value: object
    cited: Cited | None

    @property
    def differs(self) -> bool:
        """Whether a paper says something else."""
        return self.cited is not None and self.cited.value != self.value


def get_field(recipe: object, dotted: str) -> object:
    """Return the field at a dotted name."""
    found = recipe
    for name in dotted.split("."):
        found = getattr(found, name)
    return found


def recipe_fields(recipe: Recipe) -> list[RecipeField]:
    """Return every field of a recipe by its dotted name, single values all, in the recipe's order."""
    cited = CITATIONS[recipe.name].fields if recipe.name in CITATIONS else {}
    return [
        RecipeField(name, get_field(recipe, name), cited.get(name))
        for name in _names(recipe)
        if name != "name"
    ]


def _names(group: object, before: str = "") -> list[str]:
    """Return the dotted names of all single values of a dataclass."""
    assert is_dataclass(group)
    names: list[str] = []
    for field in fields(group):
        value = getattr(group, field.name)
        inner = _names(value, f"{before}{field.name}.") if is_dataclass(value) else None
        names += [f"{before}{field.name}"] if inner is None else inner
    return names


def cited_field_names(recipe: Recipe) -> list[str]:
    """Return the names of the fields that a paper's recipe must be cited for."""
    names = list(RECIPE_FIELDS)
    for part, stage in zip(("pretrain", "finetune"), recipe.stages, strict=True):
        for field in STAGE_FIELDS:
            group = field == "lora" and stage.lora is not None
            several = ("lora.rank", "lora.alpha", "lora.dropout") if group else (field,)
            names += [f"{part}.{each}" for each in several]
    return names


def parameters_of(recipe: Recipe) -> dict[str, int | None]:
    """Return how many weights each part has, computed from its shape; None where that is not known here."""
    return {
        "vision": num_vision_parameters(recipe.vision),
        "projector": num_projector_parameters(recipe.projector, recipe.vision, recipe.language),
        "language": num_language_parameters(recipe.language),
    }


def describe(recipe: Recipe) -> dict[str, Any]:
    """Return everything about a recipe, as JSON holds it."""
    citation = CITATIONS.get(recipe.name)
    told = {
        "name": recipe.name,
        "paper": citation.paper if citation else None,
        "parameters": parameters_of(recipe),
        "data": {part: _as_data(each) for part, each in data_of(recipe).items()},
        "settings": [
            {
                "name": setting.name,
                "value": setting.value,
                "paper": setting.cited.value if setting.cited else None,
                "cited": setting.cited is not None,
                "certain": setting.cited.certain if setting.cited else None,
                "source": setting.cited.source if setting.cited else None,
                "note": setting.cited.note if setting.cited else "",
            }
            for setting in recipe_fields(recipe)
        ],
        "notes": list(citation.notes) if citation else [],
    }
    return dict(to_plain_json(told))


def _as_data(needs: DatasetInfo) -> dict[str, object]:
    return {field.name: getattr(needs, field.name) for field in fields(needs)}


def data_of(recipe: Recipe) -> dict[str, DatasetInfo]:
    """Return the data that each stage's user must bring; none for a recipe that makes its own."""
    if not isinstance(recipe, PaperRecipe):
        return {}
    return {"pretrain": recipe.pretrain_data, "finetune": recipe.finetune_data}


COLUMNS = ("recipe", "weights", "stage", "data", "learns", "batch", "learning rate", "epochs")
"""Of the overview; what a paper has stands in brackets behind what is here."""


def overview(recipe: Recipe) -> list[tuple[str, ...]]:
    """Return a recipe's rows under COLUMNS, one for each stage."""
    sizes = parameters_of(recipe).values()
    weights = " + ".join(compact_number(size) for size in sizes)
    heads = ((recipe.name, weights), ("", ""))
    return [
        (
            *head,
            part,
            _data_cell(recipe, part),
            _trainable_parts(stage),
            _with_cited(recipe, part, "batch_size"),
            _rates(recipe, part, stage),
            _with_cited(recipe, part, "epochs"),
        )
        for head, part, stage in zip(heads, ("pretrain", "finetune"), recipe.stages, strict=True)
    ]


def _data_cell(recipe: Recipe, part: str) -> str:
    """Say which data a stage learns from, and how much."""
    if isinstance(recipe, SceneRecipe):
        return f"{recipe.scenes.train:,} drawn scenes"
    needs = data_of(recipe)[part]
    return f"{needs.name}, {compact_number(needs.rows)}"


def _trainable_parts(stage: Stage) -> str:
    """Say which parts learn."""
    lora = f" by rank {stage.lora.rank}" if stage.lora else ""
    return ", ".join(stage.trainable) + lora


def _rates(recipe: Recipe, part: str, stage: Stage) -> str:
    """Return a stage's rate beside the paper's, and those of parts with their own."""
    told = [_with_cited(recipe, part, "learning_rate")]
    for which in ("projector", "vision"):
        if getattr(stage, f"{which}_learning_rate") is not None:
            told.append(f"{which} {_with_cited(recipe, part, f'{which}_learning_rate')}")
    return ", ".join(told)


def _with_cited(recipe: Recipe, part: str, field: str) -> str:
    """Return a setting, with the paper's in brackets behind it; a question mark where that is not verified."""
    name = f"{part}.{field}"
    value = format_value(get_field(recipe, name))
    citation = CITATIONS.get(recipe.name)
    if citation is None:
        return value
    cited = citation.fields[name]
    return f"{value} ({format_value(cited.value)}{'' if cited.certain else '?'})"


_SMALL = 1e-2
"""Numbers below it are written with an exponent."""


def format_value(value: object) -> str:
    """Write a setting as people do."""
    if value is None:
        return "-"
    if isinstance(value, float) and 0 < value < _SMALL:
        mantissa, exponent = f"{value:e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return ", ".join(map(format_value, value)) or "-"
    return f"{value:,}" if type(value) is int else str(value)


_STEPS = ((10**9, "B"), (10**6, "M"), (10**3, "K"))


def compact_number(number: int | None) -> str:
    """Write a large number in three digits: 6.74 B, 303 M, 158 K."""
    if number is None:
        return "?"
    for size, letter in _STEPS:
        if number >= size:
            share = number / size
            return f"{share:.{2 if share < 10 else 1 if share < 100 else 0}f} {letter}"
    return str(number)


def markdown() -> str:
    """Return the overview of all papers' recipes and what each needs, as docs/recipes.md shows them."""
    recipes = [build() for build in PAPER_RECIPES.values()]
    rows = [row for recipe in recipes for row in overview(recipe)]
    needs = {each.name: each for recipe in recipes for each in data_of(recipe).values()}
    data = [
        (each.name, compact_number(each.rows), f"`{each.file}`", _folders(each), each.source)
        for each in needs.values()
    ]
    return "\n\n".join(
        (
            _table(COLUMNS, rows),
            _table(("data", "records", "file", "image folders", "where people get it"), data),
        )
    )


def _folders(needs: DatasetInfo) -> str:
    return ", ".join(f"`{folder}`" for folder in needs.images) or "as the file names them"


def _table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Lay out a table in Markdown."""
    lines = [columns, ("---",) * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
