"""Facts about a model for its card: read from its folder, its run and its evaluations, never assumed."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution
from math import prod
from pathlib import Path
from typing import Any

from caldera.export.model_card import HUB, CardFacts, CardStage, HubCard, Parent
from caldera.formats.config import read_config
from caldera.formats.open_model import open_model
from caldera.formats.safetensors_files import LazyWeight
from caldera.formats.transformers_config import unsupported_by_transformers
from caldera.formats.weight_names import digest_folder, stored_dtype
from caldera.model.bundle import LlavaBundle, ModelMetadata
from caldera.overrides import with_current_names
from caldera.pipelines.card_commands import training_commands
from caldera.pipelines.card_scores import find_evaluations
from caldera.recipes.towers import PYPI_MODELS
from caldera.scenes.backbones import BACKBONES

_ROLES = {
    "vision": "vision tower",
    "language": "language model",
    "projector": "projector",
    "source": "imported model",
    "base": "base language model",
}
"""Parts by their keys in the metadata."""

_TRANSFORMERS_CLASSES = {
    "llava": "LlavaForConditionalGeneration",
    "llava_next": "LlavaNextForConditionalGeneration",
    "llava_onevision": "LlavaOnevisionForConditionalGeneration",
}

_SUMMARIZED = ("learning_rate", "batch_size", "epochs", "max_steps", "template", "seed")
"""Settings of a stage that a card lists."""

_LICENSE_TITLES = {
    "apache software license 2.0": "apache-2.0",
    "apache license": "apache-2.0",
    "mit license": "mit",
}
"""Licenses by the first line of their text."""


ReadHubCard = Callable[[str, str], HubCard]
"""Returns what the card of a model states, by its name and revision."""


def gather_facts(
    folder: Path,
    repo_id: str,
    results: Sequence[Path] = (),
    read_hub_card: ReadHubCard | None = None,
) -> CardFacts:
    """Return what is known of a model.

    Args:
        folder: A model folder of caldera or llava-hf.
        repo_id: Name that the model gets.
        results: Run folders of evaluations, or folders of them; by default they are searched near the model.
        read_hub_card: Reads the licenses of parents on the Hub; without it they are unknown.

    Raises:
        ModelFormatError: The folder cannot be loaded: a file is missing or broken, or weights and config do not fit.
        InputError: An evaluation that was given is of another model.
    """
    assistant, weights = open_model(folder)
    metadata = assistant.card
    recipe = _find_recipe(folder, metadata)
    parents = tuple(_parents(metadata, recipe, read_hub_card))
    unsupported = unsupported_by_transformers(assistant.model)
    stages = tuple(_stages(folder, metadata))
    evaluations = find_evaluations(folder, results)
    model_type = read_config(folder)["model_type"]
    return CardFacts(
        repo_id=repo_id,
        summary=_summary(assistant, weights),
        parents=parents,
        stages=stages,
        data_note=_data_note(recipe),
        commands=training_commands(metadata, parents, recipe),
        evaluations=evaluations,
        tags=("caldera", "llava", "vision-language-model"),
        transformers_class=None if unsupported else _TRANSFORMERS_CLASSES.get(model_type),
        not_in_transformers=unsupported,
        limits=tuple(_limits(assistant, has_scores=bool(evaluations), is_drawn=_is_scene(recipe))),
    )


def _find_recipe(folder: Path, metadata: ModelMetadata) -> dict[str, Any] | None:
    """Return the recipe of the run that made a model folder; None if there is none, or of other settings."""
    for run in (folder.parent, folder.parent.parent):
        try:
            recipe = with_current_names(json.loads((run / "recipe.json").read_bytes()))
        except (OSError, ValueError):
            continue
        stages = with_current_names(metadata.recipe)
        if stages and all(recipe.get(name) == settings for name, settings in stages.items()):
            return dict(recipe)
    return None


def _is_scene(recipe: dict[str, Any] | None) -> bool:
    return recipe is not None and "scenes" in recipe


def _summary(assistant: LlavaBundle, weights: dict[str, LazyWeight]) -> str:
    """Return what a model is, in two sentences."""
    model, card = assistant.model, assistant.card
    tower, language = model.vision.tower.config, model.language.config
    num_weights = sum(prod(weight.shape) for weight in weights.values())
    dtype = str(stored_dtype(weights)).removeprefix("torch.")
    return (
        f"An assistant that answers questions about images, as LLaVA: a vision tower of type `{tower.model_type}` "
        f"({assistant.processor.side} pixels a side), a projector `{card.projector}`, and a language model of type "
        f"`{language.model_type}`. It has {num_weights / 1e6:,.1f} million weights in {dtype}; its image "
        f"aspect is `{card.image_aspect}`, its chat template `{card.template}`."
    )


def _parents(
    metadata: ModelMetadata, recipe: dict[str, Any] | None, read_hub_card: ReadHubCard | None
) -> Iterator[Parent]:
    """Yield the models that a model was made from."""
    backbones = {digest_folder(folder): name for name, folder in BACKBONES.items()}
    for key, digest in metadata.source_digests.items():
        if key == "run":
            continue
        recorded = metadata.sources.get(key) or (recipe or {}).get(key, "")
        if digest in backbones:
            parent = _packaged("caldera", backbones[digest])
        elif recorded in PYPI_MODELS:
            parent = _packaged(PYPI_MODELS[recorded][0].replace("_", "-"), recorded)
        elif "@" in recorded:
            parent = _on_hub(recorded, read_hub_card)
        elif key in metadata.sources:
            parent = Parent(name=recorded, home="a folder")
        else:
            parent = Parent()
        languages = parent.languages if key in ("language", "base", "source") else ()
        yield replace(parent, role=_ROLES.get(key, key), sha256=digest, languages=languages)


def _on_hub(pinned: str, read_hub_card: ReadHubCard | None) -> Parent:
    """Return what is known of a model on the Hub, ORG/NAME@COMMIT."""
    name, _, revision = pinned.partition("@")
    card = read_hub_card(name, revision) if read_hub_card else HubCard()
    return Parent(
        name=name,
        home=HUB,
        revision=revision,
        license=card.license,
        license_source="its card on the Hub" if card.license else "",
        languages=card.languages,
    )


def _packaged(package: str, name: str) -> Parent:
    """Return what is known of a model in a package, which need not be installed."""
    home = f"the package {package}"
    try:
        installed = distribution(package)
    except PackageNotFoundError:
        return Parent(name=name, home=home)
    fields = [installed.metadata.get_all(key) for key in ("License-Expression", "License")]
    stated = next((values[0] for values in fields if values), "")
    source = "metadata of the package"
    if stated in ("", "UNKNOWN") or "\n" in stated:
        text = installed.read_text("LICENSE") or ""
        title = next((line.strip().lower() for line in text.splitlines() if line.strip()), "")
        stated, source = _LICENSE_TITLES.get(title, ""), "LICENSE of the package"
    return Parent(
        name=name,
        home=home,
        revision=installed.version,
        license=stated.lower() or None,
        license_source=source if stated else "",
    )


def _stages(folder: Path, metadata: ModelMetadata) -> Iterator[CardStage]:
    """Yield the training stages that the metadata records."""
    for name, stored in metadata.recipe.items():
        settings = with_current_names(stored)
        loss = metadata.metrics.get("validation_loss") if name == metadata.stage else None
        parts = [f"trains {' and '.join(settings['trainable'])}"] if "trainable" in settings else []
        parts += [
            f"{key.replace('_', ' ')} {settings[key]}"
            for key in _SUMMARIZED
            if settings.get(key) is not None
        ]
        if settings.get("lora"):
            parts.append(f"LoRA of rank {settings['lora']['rank']}")
        if loss is not None:
            parts.append(f"validation loss {loss:.4f} nats per token at its end")
        data = metadata.data.get(name)
        num_records = None if data else _num_records(folder, metadata, name)
        yield CardStage(name=name, summary=", ".join(parts), data=data, records=num_records)


def _num_records(folder: Path, metadata: ModelMetadata, stage: str) -> int | None:
    """Return the number of records of a stage from its run's folder; None if that is not near."""
    for run in (folder.parent, folder.parent / stage, folder.parent.parent / stage):
        try:
            settings = with_current_names(json.loads((run / "stage.json").read_bytes()))
            records = json.loads((run / "run.json").read_bytes())["records"]
        except (OSError, ValueError, KeyError):
            continue
        if settings == with_current_names(metadata.recipe[stage]):
            return len(records)
    return None


def _data_note(recipe: dict[str, Any] | None) -> str:
    if not _is_scene(recipe):
        return ""
    assert recipe is not None
    scenes = recipe["scenes"]
    return (
        f"The data was generated by caldera's recipe `{recipe['name']}` about {scenes['train']} drawn scenes (seed "
        f"{scenes['seed']})."
    )


def _limits(assistant: LlavaBundle, *, has_scores: bool, is_drawn: bool) -> Iterator[str]:
    """Yield the limits that follow from the files."""
    card = assistant.card
    if is_drawn:
        yield "It was trained on drawings only; photos are outside of its data."
    if card.stage is None and not card.recipe:
        yield "Its folder records no training by caldera."
    elif "finetune" not in card.recipe:
        yield "It was trained by stage 1 only, so it describes images, but was not trained to follow instructions."
    if (context := assistant.model.context_length) is not None:
        yield f"A conversation has at most {context} tokens, those of images included."
    if has_scores:
        yield "Nothing was measured but the scores above; bias and safety were not."
    else:
        yield "Nothing was measured: neither the quality of its answers, nor bias, nor safety."
    if card.source_digests and "run" not in card.source_digests and not card.recipe:
        yield "Its weights are those of the models it was made from, in another layout."
