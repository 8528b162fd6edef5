"""`caldera train ...`: the two stages on a user's own files."""

from pathlib import Path
from typing import Annotated, Any

import typer

from caldera.cli.options import (
    Device,
    Dtype,
    IgnoreField,
    Images,
    MaxBad,
    Resume,
    Set,
    Workers,
    runtime_from,
    stderr_console,
)

app = typer.Typer(no_args_is_help=True, help="Train: stage 1 (pretrain), stage 2 (finetune).")


@app.command()
def pretrain(
    data: Annotated[Path, typer.Option(help="Image-caption records in LLaVA's JSON.")],
    out_folder: Annotated[Path, typer.Option("--out", help="Run folder.")],
    vision: Annotated[
        str, typer.Option(help="Vision tower: scenes-vit or a folder.")
    ] = "scenes-vit",
    language: Annotated[
        str, typer.Option(help="Language model: scenes-llama, a folder or a .gguf file.")
    ] = "scenes-llama",
    projector: Annotated[str, typer.Option(help="linear or mlp2x_gelu.")] = "mlp2x_gelu",
    aspect: Annotated[str, typer.Option(help="square, pad or anyres.")] = "square",
    vision_feature_layer: Annotated[
        int, typer.Option(help="Hidden state of the tower that is projected.")
    ] = -2,
    feature_select: Annotated[
        str, typer.Option(help="patch, or cls_patch to keep what stands before the patches.")
    ] = "patch",
    images: Images = None,
    settings: Set = None,
    resume: Resume = False,
    max_bad_fraction: MaxBad = 0.0,
    ignore_field: IgnoreField = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    workers: Workers = None,
) -> None:
    """Stage 1: join two towers and train the projector on captions, everything else frozen.

    [bold]Examples[/bold]

      caldera train pretrain --data blip_laion_cc_sbu_558k.json --images images --out runs/stage1

      caldera train pretrain --data pairs.json --out runs/stage1 --set epochs=10 --set batch_size=16
    """
    from caldera.overrides import apply_overrides
    from caldera.pipelines.train_files import (
        ModelParts,
        TrainingFiles,
        build_model,
        parse_aspect,
        parse_select,
    )
    from caldera.training.stage import PRETRAIN

    stage = apply_overrides(PRETRAIN, settings or ())
    parts = ModelParts(
        vision=vision,
        language=language,
        projector=projector,
        aspect=parse_aspect(aspect),
        select_layer=vision_feature_layer,
        select=parse_select(feature_select),
    )
    start = build_model(parts, stage, out_folder / "towers")
    surplus = frozenset(ignore_field or ())
    files = TrainingFiles(data=data, images=images, out=out_folder, ignore=surplus)
    _train(stage, start, files, runtime_from(device, dtype, workers), max_bad_fraction, resume)


@app.command()
def finetune(
    model: Annotated[Path, typer.Option(help="Model folder of stage 1.")],
    data: Annotated[Path, typer.Option(help="Instruction data in LLaVA's JSON.")],
    out_folder: Annotated[Path, typer.Option("--out", help="Run folder.")],
    lora: Annotated[
        bool,
        typer.Option(
            "--lora",
            help="Train the language model by low-rank factors, as LLaVA-1.5 did: rank 128, learning rate 2e-4. "
            "--set lora.rank=8 changes one of their settings.",
        ),
    ] = False,
    images: Images = None,
    settings: Set = None,
    resume: Resume = False,
    max_bad_fraction: MaxBad = 0.0,
    ignore_field: IgnoreField = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    workers: Workers = None,
) -> None:
    """Stage 2: train projector and language model on instruction data, the vision tower frozen.

    [bold]Examples[/bold]

      caldera train finetune --model runs/stage1/model --data data.json --out runs/stage2

      caldera train finetune --model runs/stage1/model --data data.json --out runs/lora --lora
    """
    from caldera.formats.model_folder import load_model_folder
    from caldera.overrides import apply_overrides
    from caldera.pipelines.train_files import TrainingFiles
    from caldera.training.stage import FINETUNE, FINETUNE_LORA

    stage = apply_overrides(FINETUNE_LORA if lora else FINETUNE, settings or ())
    start = load_model_folder(model)
    surplus = frozenset(ignore_field or ())
    files = TrainingFiles(data=data, images=images, out=out_folder, ignore=surplus)
    _train(stage, start, files, runtime_from(device, dtype, workers), max_bad_fraction, resume)


@app.command()
def recipe(
    name: Annotated[str, typer.Argument(help="A paper's recipe; `caldera recipes` lists them.")],
    out_folder: Annotated[Path, typer.Option("--out", help="Run folder.")],
    vision: Annotated[str | None, typer.Option(help="Folder of the vision tower.")] = None,
    language: Annotated[
        str | None, typer.Option(help="Folder or .gguf file of the language model.")
    ] = None,
    pretrain_data: Annotated[Path | None, typer.Option(help="Data file of stage 1.")] = None,
    pretrain_images: Annotated[
        Path | None, typer.Option(help="Its images. \\[default: the data file's own folder]")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Data file of stage 2.")] = None,
    images: Images = None,
    stage1_model: Annotated[
        Path | None,
        typer.Option(
            help="Model folder of a stage 1 that is done, in place of towers and its data."
        ),
    ] = None,
    settings: Set = None,
    resume: Resume = False,
    max_bad_fraction: MaxBad = 0.0,
    ignore_field: IgnoreField = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    workers: Workers = None,
) -> None:
    """Run both stages of a paper's recipe on data and towers that you bring; without them, say which it needs.

    [bold]Examples[/bold]

      caldera train recipe llava_15_7b --out runs/llava15          says what it needs and where people get it

      caldera train recipe llava_15_7b --out runs/llava15 --vision clip-vit-large-patch14-336 --language vicuna-7b-v1.5
      --pretrain-data LLaVA-Pretrain/blip_laion_cc_sbu_558k.json --data llava_v1_5_mix665k.json --images images

      caldera train recipe llava_15_7b_lora --out runs/lora --aligned runs/llava15/pretrain/model
      --data llava_v1_5_mix665k.json --images images --set finetune.lora.rank=64
    """
    from caldera.overrides import apply_overrides
    from caldera.pipelines.paper_run import UserInputs, run_paper_recipe
    from caldera.recipes.registry import find_paper_recipe

    brought = UserInputs(
        vision=vision,
        language=language,
        pretrain_data=pretrain_data,
        pretrain_images=pretrain_images,
        data=data,
        images=images,
        aligned=stage1_model,
        ignore=frozenset(ignore_field or ()),
    )
    chosen = apply_overrides(find_paper_recipe(name), settings or ())
    means = runtime_from(device, dtype, workers)
    outcomes = run_paper_recipe(
        chosen, brought, out_folder, means=means, max_bad=max_bad_fraction, resume=resume
    )
    for stage, outcome in outcomes.items():
        _tell(outcome, out_folder / stage)


@app.command()
def merge(
    adapter: Annotated[Path, typer.Argument(help="Adapter folder of a run with --lora.")],
    model: Annotated[Path, typer.Option(help="Model folder that the run began with.")],
    out_folder: Annotated[Path, typer.Option("--out", help="Model folder to write.")],
) -> None:
    """Fold an adapter into the model it was trained on; every run has done so already, in its folder model/.

    [bold]Examples[/bold]

      caldera train merge runs/lora/adapter --model runs/stage1/model --out merged
    """
    from caldera.pipelines.train_files import merge_adapter_folder

    merge_adapter_folder(adapter, model, out_folder)
    stderr_console.print(f"model: {out_folder}", markup=False)


def _train(
    stage: Any,  # noqa: ANN401 - these types are heavy to import
    start: Any,  # noqa: ANN401
    files: Any,  # noqa: ANN401
    means: Any,  # noqa: ANN401
    max_bad: float,
    resume: bool,
) -> None:
    """Run a stage on a data file."""
    from caldera.pipelines.train_files import train_stage

    outcome = train_stage(stage, start, files, means=means, max_bad=max_bad, resume=resume)
    _tell(outcome, files.out)


def _tell(outcome: Any, folder: Path) -> None:  # noqa: ANN401 - its type is heavy to import
    """Say what a stage came to, and where it is."""
    if outcome is None:
        stderr_console.print(f"done before: {folder / 'model'}", markup=False)
        return
    stderr_console.print(
        f"{outcome.steps} steps in {outcome.seconds:.0f} s "
        f"({outcome.samples_per_second:.1f} conversations/s)"
    )
    if outcome.last_validation_loss is not None:
        stderr_console.print(
            f"loss on held-out records: {outcome.first_validation_loss:.3f} -> "
            f"{outcome.last_validation_loss:.3f} nats per token"
        )
    stderr_console.print(f"model: {folder / 'model'}", markup=False)
