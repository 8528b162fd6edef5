"""Run of a paper's recipe on a user's data: both stages, one after the other, in one folder.

```
OUT/
  recipe.json           settings
  towers/               towers converted from other files, and the commits of those from the Hub
  features/             the frozen tower's features
  pretrain/  finetune/  run folders of the stages; finetune/model is the assistant
```

With `resume`, a finished stage is skipped, and an interrupted one is resumed.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

from caldera.conversation import read_conversations
from caldera.conversation.reader import ReadOptions
from caldera.devices import Runtime
from caldera.errors import UsageError
from caldera.files.atomic import lock_folder
from caldera.files.skipped_items import SkippedItems
from caldera.formats.assemble import assemble
from caldera.formats.hub_models import pinned_folders
from caldera.formats.open_model import load_model
from caldera.model.bundle import LlavaBundle
from caldera.model.lora import target_layers
from caldera.recipes.papers import DatasetInfo, PaperRecipe
from caldera.recipes.recipe import check_recipe, write_recipe
from caldera.recipes.towers import DELTAS, check_tower, resolve_towers
from caldera.training.hyperparameters import Stage
from caldera.training.job import TrainingData, TrainingJob
from caldera.training.loop import TrainingResult


@dataclass(frozen=True, kw_only=True, slots=True)
class UserInputs:
    """Towers and data that the user provides; None if not given."""

    vision: str | None = None
    language: str | None = None
    pretrain_data: Path | None = None
    pretrain_images: Path | None = None
    data: Path | None = None
    images: Path | None = None
    stage1_model: str | Path | None = None
    """Model of an earlier stage 1, which replaces towers and stage 1: a folder or a name on the Hugging Face Hub."""

    reading: ReadOptions = field(default_factory=ReadOptions)
    """How the data files are read, apart from their folders of images."""


def run_paper_recipe(
    recipe: PaperRecipe,
    inputs: UserInputs,
    out: Path,
    *,
    runtime: Runtime,
    max_bad_fraction: float,
    resume: bool,
) -> dict[str, TrainingResult | None]:
    """Run both stages, or the second alone on the model of an earlier stage 1.

    Args:
        recipe: The recipe.
        inputs: Towers and data.
        out: Folder of the run.
        runtime: Device and progress.
        max_bad_fraction: Fraction of each data set's records that may be skipped.
        resume: Skip finished stages, and resume an interrupted one.

    Returns:
        Result of each stage by name; None if the stage was finished before.

    Raises:
        CalderaError: An input is missing or cannot be read, or training failed.
    """
    check_missing_inputs(recipe, inputs)
    _check_unused_inputs(inputs)
    recipe = replace(
        recipe, vision=inputs.vision or recipe.vision, language=inputs.language or recipe.language
    )
    results = {}
    with lock_folder(out):
        if not inputs.stage1_model:
            check_tower(recipe.vision)
            check_tower(recipe.language)
        # All data is read before a model is loaded and hours are spent on the first stage.
        stages = _stages(recipe, inputs, max_bad_fraction)
        assistant = _initial_model(recipe, inputs, out)
        for stage, _, _ in stages:
            if stage.lora:
                target_layers(assistant.model.language, stage.lora.targets)
        check_recipe(out, recipe)
        write_recipe(out, recipe)
        for stage, data, skipped in stages:
            job = TrainingJob(
                stage=stage,
                assistant=assistant,
                data=data,
                out=out / stage.name,
                features=out / "features",
                runtime=runtime,
                skipped=skipped,
                resume=resume,
            )
            assistant, results[stage.name] = job.run()
    return results


def _initial_model(recipe: PaperRecipe, inputs: UserInputs, out: Path) -> LlavaBundle:
    """Load the model of an earlier stage 1, or join the two towers with a fresh projector."""
    if inputs.stage1_model:
        assistant = load_model(pinned_folders(inputs.stage1_model, file=out / "hub.json")[0])
        for name in ("projector", "vision_feature_layer"):
            actual, expected = getattr(assistant.card, name), getattr(recipe, name)
            if actual != expected:
                raise UsageError(
                    f"{inputs.stage1_model} has {name} {actual!r}, {recipe.name} has {expected!r}; give a stage 1 of "
                    f"this recipe, or add --set {name}={actual}"
                )
        return assistant
    return assemble(
        *resolve_towers(recipe.vision, recipe.language, work=out / "towers"),
        projector=recipe.projector,
        aspect=recipe.aspect,
        vision_feature_layer=recipe.vision_feature_layer,
        template=recipe.pretrain.template,
        seed=recipe.seed,
    )


def _stages(
    recipe: PaperRecipe, inputs: UserInputs, max_bad_fraction: float
) -> list[tuple[Stage, TrainingData, SkippedItems]]:
    """Return the stages to run, each with its data and the skipped records."""

    def read(
        stage: Stage, file: Path | None, images: Path | None
    ) -> tuple[Stage, TrainingData, SkippedItems]:
        assert file is not None  # as checked
        skipped = SkippedItems(max_bad_fraction)
        options = replace(inputs.reading, images=images, check_images=True)
        conversations = read_conversations(file, skipped=skipped, options=options)
        num_unreadable = len(skipped.items)
        folder = images or file.parent
        data = TrainingData(
            conversations=conversations,
            images=folder,
            num_unreadable=num_unreadable,
            decoding=options.decoding,
            file=file,
        )
        return stage, data, skipped

    finetune = read(recipe.finetune, inputs.data, inputs.images)
    if inputs.stage1_model:
        return [finetune]
    return [read(recipe.pretrain, inputs.pretrain_data, inputs.pretrain_images), finetune]


def check_missing_inputs(recipe: PaperRecipe, inputs: UserInputs) -> None:
    """Check that every input of a recipe was given.

    Raises:
        UsageError: Some were not; the message lists them and where to get them.
    """
    missing = []
    if not inputs.stage1_model:
        if inputs.language is None and recipe.language in DELTAS:
            missing.append(f"--language FOLDER ({recipe.language}, added to the first LLaMA)")
        if inputs.pretrain_data is None:
            missing.append(f"--pretrain-data FILE ({_describe_dataset(recipe.pretrain_data)})")
    if inputs.data is None:
        missing.append(f"--data FILE ({_describe_dataset(recipe.finetune_data)})")
    if missing:
        raise UsageError(
            f"{recipe.name} needs files that caldera does not download; pass: {'; '.join(missing)}"
            f"{_describe_downloads(recipe, inputs)}"
        )


def _describe_downloads(recipe: PaperRecipe, inputs: UserInputs) -> str:
    """Name the towers that the recipe takes from the Hub."""
    towers = {
        "--vision": (inputs.vision, recipe.vision),
        "--language": (inputs.language, recipe.language),
    }
    names = [
        f"{name} ({option} replaces it)"
        for option, (replacement, name) in towers.items()
        if not (replacement or inputs.stage1_model or name in DELTAS)
    ]
    return f". From the Hugging Face Hub it downloads {' and '.join(names)}" if names else ""


def _check_unused_inputs(inputs: UserInputs) -> None:
    """Raise UsageError if an input was given that the model of an earlier stage 1 replaces."""
    replaced = {
        "--vision": inputs.vision,
        "--language": inputs.language,
        "--pretrain-data": inputs.pretrain_data,
        "--pretrain-images": inputs.pretrain_images,
    }
    unused = [option for option, value in replaced.items() if value is not None]
    if inputs.stage1_model and unused:
        raise UsageError(
            f"--stage1-model {inputs.stage1_model} replaces towers and stage 1, so {', '.join(unused)} would not be "
            "used; remove it"
        )


def _describe_dataset(dataset: DatasetInfo) -> str:
    """Describe a data set in one line."""
    folders = f", with {', '.join(dataset.images)} in its image folder" if dataset.images else ""
    return f"{dataset.name}: {dataset.file}, {dataset.rows:,} records{folders}; {dataset.source}"
