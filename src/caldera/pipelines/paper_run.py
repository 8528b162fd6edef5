"""A paper's recipe and a user's files in, both stages run one after the other in one folder.

```
OUT/
  recipe.json           what is run
  towers/               language models unpacked from GGUF files, where one is given
  features/             the frozen tower's features
  pretrain/  finetune/  run folders of the stages; finetune/model is the assistant
```

A stage whose result stands there is passed over, one that was broken off goes on, both with `resume`.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from caldera.conversation import read_conversations
from caldera.devices import Runtime
from caldera.errors import UsageError
from caldera.files.atomic import lock_folder
from caldera.files.skipped import SkippedItems
from caldera.formats.assemble import assemble
from caldera.formats.model_folder import load_model_folder
from caldera.model.assistant import LlavaBundle
from caldera.model.lora import target_layers
from caldera.recipes.papers import DatasetInfo, PaperRecipe
from caldera.recipes.recipe import check_or_write_recipe
from caldera.recipes.towers import resolve_tower
from caldera.training.job import TrainingData, TrainingJob
from caldera.training.loop import TrainingResult
from caldera.training.stage import Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class UserInputs:
    """What a user brings to a recipe; None is what was not given."""

    vision: str | None = None
    language: str | None = None
    pretrain_data: Path | None = None
    pretrain_images: Path | None = None
    data: Path | None = None
    images: Path | None = None
    aligned: Path | None = None
    """Model folder of a stage 1 that was run before, which then is not run again."""

    ignore: frozenset[str] = frozenset()
    """Surplus fields of records to pass over."""


def run_paper_recipe(
    recipe: PaperRecipe,
    brought: UserInputs,
    out: Path,
    *,
    means: Runtime,
    max_bad: float,
    resume: bool,
) -> dict[str, TrainingResult | None]:
    """Run both stages, or the second alone on a stage 1 that is brought.

    Args:
        recipe: What to run.
        brought: Towers and data.
        out: Folder of the run.
        means: Where it is computed, and who follows it.
        max_bad: Share of each data set's records that may be left out.
        resume: Pass over what is finished, and go on where a stage was broken off.

    Returns:
        What each stage came to, by its name; None where its result stood there.

    Raises:
        CalderaError: Something is not brought, cannot be read, or training failed.
    """
    check_missing_inputs(recipe, brought)
    _check_unused_inputs(brought)
    recipe = replace(
        recipe, vision=brought.vision or recipe.vision, language=brought.language or recipe.language
    )
    outcomes = {}
    with lock_folder(out):
        assistant = _initial_model(recipe, brought, out)
        work = _stages(recipe, brought)  # read before hours are spent on the first
        for stage, _ in work:
            if stage.lora:
                target_layers(assistant.model.language, stage.lora.targets)
        check_or_write_recipe(out, recipe)
        for stage, data in work:
            job = TrainingJob(
                stage=stage,
                assistant=assistant,
                data=data,
                out=out / stage.name,
                features=out / "features",
                runtime=means,
                skipped=SkippedItems(max_bad),
                resume=resume,
            )
            assistant, outcomes[stage.name] = job.run()
    return outcomes


def _initial_model(recipe: PaperRecipe, brought: UserInputs, out: Path) -> LlavaBundle:
    """Load the stage 1 that was brought, or join the two towers with a fresh projector.

    Raises:
        UsageError: The stage 1 was another recipe's.
    """
    if brought.aligned:
        found = load_model_folder(brought.aligned)
        for name, given, wanted in (
            ("projector", found.card.projector, recipe.projector),
            ("select_layer", found.card.vision_feature_layer, recipe.select_layer),
        ):
            if given != wanted:
                raise UsageError(
                    f"{brought.aligned} has {name} {given!r}, {recipe.name} has {wanted!r}; bring a stage 1 of this "
                    f"recipe, or say --set {name}={given}"
                )
        return found
    return assemble(
        resolve_tower(recipe.vision, out / "towers"),
        resolve_tower(recipe.language, out / "towers"),
        projector=recipe.projector,
        aspect=recipe.aspect,
        vision_feature_layer=recipe.select_layer,
        template=recipe.pretrain.template,
        seed=recipe.seed,
    )


def _stages(recipe: PaperRecipe, brought: UserInputs) -> list[tuple[Stage, TrainingData]]:
    """Return the stages that are run, each with its data.

    Raises:
        InputError: A data file cannot be read.
    """

    def read(file: Path | None, images: Path | None) -> TrainingData:
        assert file is not None  # as checked
        conversations = read_conversations(file, brought.ignore)
        return TrainingData(conversations=conversations, images=images or file.parent)

    last = (recipe.finetune, read(brought.data, brought.images))
    if brought.aligned:
        return [last]
    return [(recipe.pretrain, read(brought.pretrain_data, brought.pretrain_images)), last]


def check_missing_inputs(recipe: PaperRecipe, brought: UserInputs) -> None:
    """See that everything a recipe needs was brought.

    Raises:
        UsageError: Something was not; the message says what it is and where people get it.
    """
    missing = []
    if not brought.aligned:
        for option, given, name in (
            ("--vision", brought.vision, recipe.vision),
            ("--language", brought.language, recipe.language),
        ):
            if given is None and not Path(name).is_dir():
                missing.append(f"{option} FOLDER ({name} on the Hugging Face hub)")
        if brought.pretrain_data is None:
            missing.append(f"--pretrain-data FILE ({_told(recipe.pretrain_data)})")
    if brought.data is None:
        missing.append(f"--data FILE ({_told(recipe.finetune_data)})")
    if missing:
        raise UsageError(f"{recipe.name} needs what nothing here downloads: {'; '.join(missing)}")


def _check_unused_inputs(brought: UserInputs) -> None:
    """Reject what a stage 1 that is brought takes the place of.

    Raises:
        UsageError: It was brought, too.
    """
    instead = {
        "--vision": brought.vision,
        "--language": brought.language,
        "--pretrain-data": brought.pretrain_data,
        "--pretrain-images": brought.pretrain_images,
    }
    given = [option for option, value in instead.items() if value is not None]
    if brought.aligned and given:
        raise UsageError(
            f"--aligned {brought.aligned} brings towers and stage 1, so {', '.join(given)} would not be used; leave it "
            "away"
        )


def _told(needs: DatasetInfo) -> str:
    """Describe a data set in a line."""
    folders = f", with {', '.join(needs.images)} below its images" if needs.images else ""
    return f"{needs.name}: {needs.file}, {needs.rows:,} records{folders}; {needs.source}"
