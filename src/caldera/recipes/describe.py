"""Description of recipes for `caldera recipes`: sizes, data, and each setting with the paper's value."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any

from caldera.files.atomic import to_plain_json
from caldera.recipes.citations import CITATIONS, RECIPE_FIELDS, STAGE_FIELDS, Cited
from caldera.recipes.papers import DatasetInfo, PaperRecipe
from caldera.recipes.recipe import PhotoRecipe, Recipe, SceneRecipe
from caldera.recipes.registry import PAPER_RECIPES
from caldera.recipes.towers import (
    num_language_parameters,
    num_projector_parameters,
    num_vision_parameters,
)
from caldera.training.hyperparameters import Stage


@dataclass(frozen=True, slots=True)
class RecipeField:
    """One field of a recipe with its cited value."""

    name: str
    value: object
    cited: Cited | None

    @property
    def differs(self) -> bool:
        """True if the paper has another value."""
        return self.cited is not None and self.cited.value != self.value


def get_field(recipe: object, dotted: str) -> object:
    """Return the field at a dotted name."""
    value = recipe
    for name in dotted.split("."):
        value = getattr(value, name)
    return value


def recipe_fields(recipe: Recipe) -> list[RecipeField]:
    """Return every field of a recipe with a single value, under its dotted name, in the recipe's order."""
    cited = CITATIONS[recipe.name].fields if recipe.name in CITATIONS else {}
    return [
        RecipeField(name, get_field(recipe, name), cited.get(name))
        for name in _names(recipe)
        if name != "name"
    ]


def _names(group: object, prefix: str = "") -> list[str]:
    """Return the dotted names of all single values of a dataclass."""
    assert is_dataclass(group)
    names: list[str] = []
    for field in fields(group):
        value = getattr(group, field.name)
        name = f"{prefix}{field.name}"
        names += _names(value, f"{name}.") if is_dataclass(value) else [name]
    return names


def cited_field_names(recipe: Recipe) -> list[str]:
    """Return the names of the fields that need a citation in a paper's recipe."""
    names = list(RECIPE_FIELDS)
    for part, stage in zip(("pretrain", "finetune"), recipe.stages, strict=True):
        for field in STAGE_FIELDS:
            is_group = field == "lora" and stage.lora is not None
            cited = ("lora.rank", "lora.alpha", "lora.dropout") if is_group else (field,)
            names += [f"{part}.{name}" for name in cited]
    return names


def parameters_of(recipe: Recipe) -> dict[str, int | None]:
    """Return the number of parameters of each part, computed from its shape; None if the shape is unknown."""
    return {
        "vision": num_vision_parameters(recipe.vision),
        "projector": num_projector_parameters(recipe.projector, recipe.vision, recipe.language),
        "language": num_language_parameters(recipe.language),
    }


def describe(recipe: Recipe) -> dict[str, Any]:
    """Return a complete description of a recipe as JSON data."""
    citation = CITATIONS.get(recipe.name)
    description = {
        "name": recipe.name,
        "paper": citation.paper if citation else None,
        "parameters": parameters_of(recipe),
        "data": {part: asdict(dataset) for part, dataset in data_of(recipe).items()},
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
    return dict(to_plain_json(description))


def data_of(recipe: Recipe) -> dict[str, DatasetInfo]:
    """Return the data set that each stage needs; none for a recipe that generates its data."""
    if not isinstance(recipe, PaperRecipe):
        return {}
    return {"pretrain": recipe.pretrain_data, "finetune": recipe.finetune_data}


COLUMNS = ("recipe", "weights", "stage", "data", "trainable", "batch", "learning rate", "epochs")
"""Columns of the overview; the paper's value follows in parentheses."""


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
    """Return name and size of a stage's data."""
    if isinstance(recipe, SceneRecipe):
        return f"{recipe.scenes.train:,} drawn scenes"
    if isinstance(recipe, PhotoRecipe):
        return "your labeled photos"
    dataset = data_of(recipe)[part]
    return f"{dataset.name}, {compact_number(dataset.rows)}"


def _trainable_parts(stage: Stage) -> str:
    """Return the trainable parts of a stage."""
    lora = f" (LoRA, rank {stage.lora.rank})" if stage.lora else ""
    return ", ".join(stage.trainable) + lora


def _rates(recipe: Recipe, part: str, stage: Stage) -> str:
    """Return a stage's learning rate with the paper's, and those of parts with their own."""
    rates = [_with_cited(recipe, part, "learning_rate")]
    for name in ("projector", "vision"):
        if getattr(stage, f"{name}_learning_rate") is not None:
            rates.append(f"{name} {_with_cited(recipe, part, f'{name}_learning_rate')}")
    return ", ".join(rates)


def _with_cited(recipe: Recipe, part: str, field: str) -> str:
    """Return a setting with the paper's value in parentheses, with a question mark if that is not verified."""
    name = f"{part}.{field}"
    value = format_value(get_field(recipe, name))
    citation = CITATIONS.get(recipe.name)
    if citation is None:
        return value
    cited = citation.fields[name]
    return f"{value} ({format_value(cited.value)}{'' if cited.certain else '?'})"


_EXPONENT_BELOW = 1e-2
"""Numbers below this are written with an exponent."""


def format_value(value: object) -> str:
    """Return a setting in readable form: 2e-5, 558,128, or - for None."""
    if value is None:
        return "-"
    if isinstance(value, float) and 0 < value < _EXPONENT_BELOW:
        mantissa, exponent = f"{value:e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return ", ".join(map(format_value, value)) or "-"
    return f"{value:,}" if type(value) is int else str(value)


_UNITS = ((10**9, "B"), (10**6, "M"), (10**3, "K"))


def compact_number(number: int | None) -> str:
    """Return a large number with three digits: 6.74 B, 303 M, 158 K."""
    if number is None:
        return "?"
    for size, letter in _UNITS:
        if number >= size:
            scaled = number / size
            return f"{scaled:.{2 if scaled < 10 else 1 if scaled < 100 else 0}f} {letter}"
    return str(number)


def markdown() -> str:
    """Return the generated part of docs/recipes.md: tables of all papers' recipes and of their data, and the notes."""
    recipes = [build() for build in PAPER_RECIPES.values()]
    rows = [row for recipe in recipes for row in overview(recipe)]
    datasets = {info.name: info for recipe in recipes for info in data_of(recipe).values()}
    data = [
        (info.name, compact_number(info.rows), f"`{info.file}`", _folders(info), info.source)
        for info in datasets.values()
    ]
    columns = ("data", "records", "file", "image folders", "source")
    notes = "\n".join(f"- {note}" for note in _notes(recipes))
    tables = (_table(COLUMNS, rows), _table(columns, data))
    return "\n\n".join((*tables, "How their training compares with LLaVA's own, and why:", notes))


def _notes(recipes: Sequence[Recipe]) -> list[str]:
    """Return every note of a recipe or of a setting once, after the names of its recipes where it is not of all."""
    names: dict[str, dict[str, None]] = {}
    for recipe in recipes:
        citation = CITATIONS[recipe.name]
        of_settings = (
            f"`{name.rpartition('.')[2]}`: {cited.note}"
            for name, cited in citation.fields.items()
            if cited.note
        )
        for note in (*citation.notes, *of_settings):
            names.setdefault(note, {})[f"`{recipe.name}`"] = None
    return [
        note if len(those) == len(recipes) else f"{', '.join(those)}: {note}"
        for note, those in names.items()
    ]


def _folders(dataset: DatasetInfo) -> str:
    return ", ".join(f"`{folder}`" for folder in dataset.images) or "as named in the file"


def _table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return a table in Markdown."""
    lines = [columns, ("---",) * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
