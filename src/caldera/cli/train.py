"""`caldera train ...`: the two training stages on a user's own files."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias, TypeVar, get_args

import typer

from caldera.cli.interruptions import StoppableGroup
from caldera.cli.options import (
    AllowTruncated,
    Device,
    Dtype,
    IgnoreField,
    ImageLimit,
    Images,
    ImagesFrom,
    MaxBadFraction,
    Offline,
    Resume,
    Set,
    Workers,
    read_options_from,
    runtime_from,
    stderr_console,
)
from caldera.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from caldera.conversation import Conversation
    from caldera.conversation.reader import ReadOptions
    from caldera.devices import Runtime
    from caldera.files.skipped_items import SkippedItems
    from caldera.model.bundle import LlavaBundle
    from caldera.training.hyperparameters import Stage
    from caldera.training.loop import TrainingResult

_Name = TypeVar("_Name", bound=str)
Vision = Annotated[
    str, typer.Option(help="Vision tower: scenes-vit, a folder or a name on the Hugging Face Hub.")
]
Language = Annotated[
    str,
    typer.Option(
        help="Language model: scenes-llama, a folder, a .gguf file or a name on the Hugging Face Hub."
    ),
]
RecipeVision = Annotated[
    str | None,
    typer.Option(help="Vision tower. \\[default: the recipe's, from the Hugging Face Hub]"),
]
RecipeLanguage = Annotated[
    str | None,
    typer.Option(help="Language model. \\[default: the recipe's, from the Hugging Face Hub]"),
]
Stage1Model = Annotated[
    str | None,
    typer.Option(help="Model or run of a finished stage 1, instead of towers and its data."),
]
_Records: TypeAlias = "tuple[Path, Sequence[Conversation], ReadOptions, SkippedItems]"

app = typer.Typer(
    cls=StoppableGroup,
    no_args_is_help=True,
    help="Train: stage 1 (pretrain), stage 2 (finetune).",
)


@app.command()
def pretrain(
    data: Annotated[Path, typer.Option(help="Image-caption records in LLaVA's JSON.")],
    out: Annotated[Path, typer.Option(help="Run folder.")],
    vision: Vision = "scenes-vit",
    language: Language = "scenes-llama",
    projector: Annotated[str, typer.Option(help="linear or mlp2x_gelu.")] = "mlp2x_gelu",
    aspect: Annotated[str, typer.Option(help="square, pad or anyres.")] = "square",
    vision_feature_layer: Annotated[
        int, typer.Option(help="Hidden state of the tower that is projected.")
    ] = -2,
    feature_select: Annotated[
        str, typer.Option(help="patch, or cls_patch to include the tokens before the patches.")
    ] = "patch",
    images: Images = None,
    images_from: ImagesFrom = None,
    settings: Set = None,
    resume: Resume = False,
    max_bad_fraction: MaxBadFraction = 0.0,
    ignore_field: IgnoreField = None,
    allow_truncated: AllowTruncated = False,
    image_limit: ImageLimit = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    workers: Workers = None,
    offline: Offline = False,
) -> None:
    """Stage 1: join two towers and train the projector on captions, everything else frozen.

    [bold]Examples[/bold]

      caldera train pretrain --data blip_laion_cc_sbu_558k.json --images images --out runs/stage1

      caldera train pretrain --data pairs.json --out runs/stage1 --set epochs=10 --set batch_size=16
    """
    from caldera.images.anyres import ASPECTS
    from caldera.overrides import apply_overrides
    from caldera.recipes.towers import resolve_towers
    from caldera.training.hyperparameters import PRETRAIN

    # Settings and data are checked before torch is imported and a model is loaded, which take long.
    stage, aspect = apply_overrides(PRETRAIN, settings or ()), _choice("aspect", aspect, ASPECTS)
    options = read_options_from(images, images_from, ignore_field, image_limit, allow_truncated)
    records = _read_data(data, options, max_bad_fraction)
    from caldera.formats.assemble import assemble
    from caldera.model.vision_tower import FeatureSelect

    model = assemble(
        *resolve_towers(vision, language, work=out / "towers"),
        projector=projector,
        aspect=aspect,
        vision_feature_layer=vision_feature_layer,
        feature_select=_choice("feature selection", feature_select, get_args(FeatureSelect)),
        template=stage.template,
        seed=stage.seed,
    )
    _train(stage, model, records, out, runtime_from(device, dtype, workers), resume=resume)


@app.command()
def finetune(
    model: Annotated[
        str, typer.Option(help="Model folder or run of stage 1, or a name on the Hugging Face Hub.")
    ],
    data: Annotated[Path, typer.Option(help="Instruction data in LLaVA's JSON.")],
    out: Annotated[Path, typer.Option(help="Run folder.")],
    lora: Annotated[
        bool,
        typer.Option(
            "--lora",
            help="Train the language model with LoRA, as LLaVA-1.5 did: rank 128, learning rate 2e-4. "
            "--set lora.rank=8 changes one of its settings.",
        ),
    ] = False,
    images: Images = None,
    images_from: ImagesFrom = None,
    settings: Set = None,
    resume: Resume = False,
    max_bad_fraction: MaxBadFraction = 0.0,
    ignore_field: IgnoreField = None,
    allow_truncated: AllowTruncated = False,
    image_limit: ImageLimit = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    workers: Workers = None,
    offline: Offline = False,
) -> None:
    """Stage 2: train projector and language model on instruction data, the vision tower frozen.

    [bold]Examples[/bold]

      caldera train finetune --model runs/stage1/model --data data.json --out runs/stage2

      caldera train finetune --model runs/stage1/model --data data.json --out runs/lora --lora
    """
    from caldera.overrides import apply_overrides
    from caldera.training.hyperparameters import FINETUNE, FINETUNE_LORA

    # Settings and data are checked before torch is imported and a model is loaded, which take long.
    stage = apply_overrides(FINETUNE_LORA if lora else FINETUNE, settings or ())
    options = read_options_from(images, images_from, ignore_field, image_limit, allow_truncated)
    records = _read_data(data, options, max_bad_fraction)
    from caldera.formats.hub_models import pinned_folders
    from caldera.formats.open_model import load_model

    start = load_model(pinned_folders(model, file=out / "hub.json")[0])
    runtime = runtime_from(device, dtype, workers)
    _train(stage, start, records, out, runtime, resume=resume)


@app.command()
def recipe(
    name: Annotated[str, typer.Argument(help="A paper's recipe; `caldera recipes` lists them.")],
    out: Annotated[Path, typer.Option(help="Run folder.")],
    vision: RecipeVision = None,
    language: RecipeLanguage = None,
    pretrain_data: Annotated[Path | None, typer.Option(help="Data file of stage 1.")] = None,
    pretrain_images: Annotated[
        Path | None, typer.Option(help="Its images. \\[default: the data file's own folder]")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Data file of stage 2.")] = None,
    images: Images = None,
    stage1_model: Stage1Model = None,
    images_from: ImagesFrom = None,
    settings: Set = None,
    resume: Resume = False,
    max_bad_fraction: MaxBadFraction = 0.0,
    ignore_field: IgnoreField = None,
    allow_truncated: AllowTruncated = False,
    image_limit: ImageLimit = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    workers: Workers = None,
    offline: Offline = False,
) -> None:
    """Run both stages of a paper's recipe on your data; without it, print what it needs.

    [bold]Examples[/bold]

      caldera train recipe llava_15_7b --out runs/llava15          prints what it needs and where to get it

      caldera train recipe llava_15_7b --out runs/llava15
      --pretrain-data LLaVA-Pretrain/blip_laion_cc_sbu_558k.json --data llava_v1_5_mix665k.json --images images

      caldera train recipe llava_15_7b_lora --out runs/lora --stage1-model runs/llava15/pretrain/model
      --data llava_v1_5_mix665k.json --images images --set finetune.lora.rank=64
    """
    from caldera.overrides import apply_overrides
    from caldera.recipes.registry import find_paper_recipe

    config = apply_overrides(find_paper_recipe(name), settings or ())
    from caldera.pipelines.paper_run import UserInputs, run_paper_recipe

    runtime = runtime_from(device, dtype, workers)
    inputs = UserInputs(
        vision=vision,
        language=language,
        pretrain_data=pretrain_data,
        pretrain_images=pretrain_images,
        data=data,
        images=images,
        stage1_model=stage1_model,
        reading=read_options_from(None, images_from, ignore_field, image_limit, allow_truncated),
    )
    run = partial(run_paper_recipe, runtime=runtime, max_bad_fraction=max_bad_fraction)
    for stage_name, result in run(config, inputs, out, resume=resume).items():
        _print_result(result, out / stage_name)


@app.command()
def merge(
    adapter: Annotated[Path, typer.Argument(help="Adapter folder of a run with --lora.")],
    model: Annotated[str, typer.Option(help="Model that the run started from.")],
    out: Annotated[Path, typer.Option(help="Model folder to write.")],
    offline: Offline = False,
) -> None:
    """Merge an adapter into the model it was trained on; every run has done so already, in its folder model/.

    [bold]Examples[/bold]

      caldera train merge runs/lora/adapter --model runs/stage1/model --out merged
    """
    from caldera.formats.lora_adapter import merge_adapter
    from caldera.formats.model_folder import save_model_folder
    from caldera.formats.open_model import load_model

    if out.exists():
        raise UsageError(f"{out} exists; choose another --out")
    save_model_folder(out, merge_adapter(adapter, load_model(model)))
    stderr_console.print(f"model: {out}", markup=False)


def _choice(subject: str, name: str, valid: Sequence[_Name]) -> _Name:
    """Return the valid name that is `name`, or raise UnknownNameError."""
    for candidate in valid:
        if candidate == name:
            return candidate
    raise UnknownNameError(subject, name, valid)


def _read_data(file: Path, options: "ReadOptions", max_bad_fraction: float) -> _Records:
    """Read a data file, and return it with its conversations, how they were read, and the skipped records."""
    from caldera.conversation import read_conversations
    from caldera.files.skipped_items import SkippedItems

    skipped = SkippedItems(max_bad_fraction)
    options = replace(options, images=options.images or file.parent, check_images=True)
    conversations = read_conversations(file, skipped=skipped, options=options)
    return file, conversations, options, skipped


def _train(
    stage: "Stage",
    model: "LlavaBundle",
    records: _Records,
    out: Path,
    runtime: "Runtime",
    *,
    resume: bool,
) -> None:
    """Train on the records of a data file, and print the result."""
    from caldera.training.job import TrainingData, TrainingJob

    file, conversations, options, skipped = records
    assert options.images is not None
    data = TrainingData(
        conversations=conversations,
        images=options.images,
        num_unreadable=len(skipped.items),
        decoding=options.decoding,
        file=file,
    )
    job = TrainingJob(
        stage=stage,
        assistant=model,
        data=data,
        out=out,
        features=out.parent / "features",
        runtime=runtime,
        skipped=skipped,
        resume=resume,
    )
    _, result = job.run()
    _print_result(result, out)


def _print_result(result: "TrainingResult | None", folder: Path) -> None:
    """Print a summary of a stage, and its folder."""
    if result is None:
        stderr_console.print(f"finished before: {folder / 'model'}", markup=False)
        return
    stderr_console.print(
        f"{result.steps} {'step' if result.steps == 1 else 'steps'} in {result.seconds:.0f} s "
        f"({result.samples_per_second:.1f} conversations/s)"
    )
    if result.last_validation_loss is not None:
        stderr_console.print(
            f"validation loss: {result.first_validation_loss:.3f} -> "
            f"{result.last_validation_loss:.3f} nats per token"
        )
    stderr_console.print(f"model: {folder / 'model'}", markup=False)
