"""Commands that train a model again, for its card: from the settings in its metadata, or the recipe of its run."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from caldera.evaluation.runs.results import flatten
from caldera.export.model_card import Parent
from caldera.files.atomic import to_plain_json
from caldera.model.bundle import ModelMetadata
from caldera.overrides import with_current_names
from caldera.recipes.recipe import PhotoRecipe
from caldera.recipes.registry import DEMO_RECIPES, RECIPES
from caldera.training.hyperparameters import FINETUNE, FINETUNE_LORA, PRETRAIN

_NAMES_OF_FILES = ("vision", "language", "pretrain_data", "finetune_data")
"""Fields of a paper's recipe that are arguments of the command instead of settings."""


def training_commands(
    metadata: ModelMetadata, parents: Sequence[Parent], recipe: Mapping[str, Any] | None
) -> list[str]:
    """Return the commands that train a model again.

    Args:
        metadata: Its stages, and their data.
        parents: Models that it was made from.
        recipe: Recipe of its run, if it had one.
    """
    data = {name: shlex.quote(training_set.file) for name, training_set in metadata.data.items()}
    if recipe is not None and recipe["name"] in RECIPES:
        return [_recipe_command(recipe, parents, data)]
    return list(_stage_commands(metadata, parents, data))


def _recipe_command(
    recipe: Mapping[str, Any], parents: Sequence[Parent], data: Mapping[str, str]
) -> str:
    """Return the command of a recipe."""
    name = recipe["name"]
    default = to_plain_json(asdict(RECIPES[name]()))
    if name in DEMO_RECIPES:
        images = " --images PHOTOS" if isinstance(DEMO_RECIPES[name](), PhotoRecipe) else ""
        words = [f"caldera demo --recipe {name}{images} --out runs/{name}"]
    else:
        default = {key: default[key] for key in default if key not in _NAMES_OF_FILES}
        words = [
            f"caldera train recipe {name} --vision {_tower(parents, 'vision tower')}",
            f"--language {_tower(parents, 'language model')}",
            f"--pretrain-data {data.get('pretrain', 'PRETRAIN_DATA')}",
            f"--data {data.get('finetune', 'DATA')} --out runs/{name}",
        ]
    return " ".join(
        [*words, *_changes(default, {key: recipe[key] for key in default if key in recipe})]
    )


def _stage_commands(
    metadata: ModelMetadata, parents: Sequence[Parent], data: Mapping[str, str]
) -> Iterator[str]:
    """Yield a command for each stage."""
    start = next((parent.name for parent in parents if parent.role == "imported model"), None)
    start = start or "MODEL"
    for name, stored in metadata.recipe.items():
        settings = with_current_names(stored)
        arguments = f"--data {data.get(name, f'{name.upper()}_DATA')} --out runs/{name}"
        if name == PRETRAIN.name:
            towers = (
                f"--vision {_tower(parents, 'vision tower')} --language {_tower(parents, 'language model')} "
                f"--projector {metadata.projector} --vision-feature-layer {metadata.vision_feature_layer} "
                f"--feature-select {metadata.feature_select}"
            )
            words, default = [f"caldera train pretrain {towers} {arguments}"], PRETRAIN
        else:
            lora = " --lora" if settings.get("lora") else ""
            words = [f"caldera train finetune --model {start} {arguments}{lora}"]
            default = FINETUNE_LORA if lora else FINETUNE
        yield " ".join([*words, *_changes(to_plain_json(asdict(default)), settings)])
        start = f"runs/{name}/model"


def _tower(parents: Sequence[Parent], role: str) -> str:
    """Return the name of a tower as `--vision` and `--language` take it."""
    parent = next((parent for parent in parents if parent.role == role), None)
    if parent is None or parent.name is None:
        return role.replace(" ", "_").upper()
    return f"{parent.name}@{parent.revision}" if parent.on_hub and parent.revision else parent.name


def _changes(default: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield `--set` for each setting that differs from the default."""
    defaults = flatten(default)
    for name, value in flatten(settings).items():
        if name.rpartition(".")[2] != "name" and defaults.get(name, ...) != value:
            yield f"--set {shlex.quote(f'{name}={_setting(value)}')}"


def _setting(value: object) -> str:
    """Return a value as `--set` takes it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        texts = [str(item) for item in value]
        is_text = any(isinstance(item, str) for item in value)
        return ",".join(texts) if is_text and len(texts) > 1 else str(tuple(value))
    return str(value)
