"""`caldera train ...`: the two stages on a user's own files."""

from pathlib import Path
from typing import Annotated, Any

import typer

from caldera.cli.options import (
    Device,
    Dtype,
    IgnoreField,
    MaxBad,
    Pictures,
    Resume,
    Set,
    err,
    means_from,
)

app = typer.Typer(no_args_is_help=True, help="Train: stage 1 (pretrain), stage 2 (finetune).")


@app.command()
def pretrain(
    data: Annotated[Path, typer.Option(help="Picture-caption records in LLaVA's JSON.")],
    out_folder: Annotated[Path, typer.Option("--out", help="Run folder.")],
    vision: Annotated[
        str, typer.Option(help="Vision tower: scenes-vit or a folder.")
    ] = "scenes-vit",
    language: Annotated[
        str, typer.Option(help="Language model: scenes-llama, a folder or a .gguf file.")
    ] = "scenes-llama",
    projector: Annotated[str, typer.Option(help="linear or mlp2x_gelu.")] = "mlp2x_gelu",
    aspect: Annotated[str, typer.Option(help="square, pad or anyres.")] = "square",
    pictures: Pictures = None,
    settings: Set = None,
    resume: Resume = False,
    max_bad: MaxBad = 0.0,
    ignore_field: IgnoreField = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Stage 1: join two towers and train the projector on captions, everything else frozen.

    [bold]Examples[/bold]

      caldera train pretrain --data blip_laion_cc_sbu_558k.json --pictures images --out runs/stage1

      caldera train pretrain --data pairs.json --out runs/stage1 --set epochs=10 --set batch_size=16
    """
    from caldera.recipes.from_files import Files, Parts, join_parts, parse_aspect
    from caldera.settings import with_settings
    from caldera.training.stage import PRETRAIN

    stage = with_settings(PRETRAIN, settings or ())
    parts = Parts(
        vision=vision, language=language, projector=projector, aspect=parse_aspect(aspect)
    )
    start = join_parts(parts, stage, out_folder / "towers")
    surplus = frozenset(ignore_field or ())
    files = Files(data=data, pictures=pictures, out=out_folder, ignore=surplus)
    _train(stage, start, files, means_from(device, dtype), max_bad, resume)


@app.command()
def finetune(
    model: Annotated[Path, typer.Option(help="Model folder of stage 1.")],
    data: Annotated[Path, typer.Option(help="Instruction data in LLaVA's JSON.")],
    out_folder: Annotated[Path, typer.Option("--out", help="Run folder.")],
    pictures: Pictures = None,
    settings: Set = None,
    resume: Resume = False,
    max_bad: MaxBad = 0.0,
    ignore_field: IgnoreField = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Stage 2: train projector and language model on instruction data, the vision tower frozen.

    [bold]Examples[/bold]

      caldera train finetune --model runs/stage1/model --data data.json --out runs/stage2
    """
    from caldera.model.folder import load_assistant
    from caldera.recipes.from_files import Files
    from caldera.settings import with_settings
    from caldera.training.stage import FINETUNE

    stage = with_settings(FINETUNE, settings or ())
    start = load_assistant(model)
    surplus = frozenset(ignore_field or ())
    files = Files(data=data, pictures=pictures, out=out_folder, ignore=surplus)
    _train(stage, start, files, means_from(device, dtype), max_bad, resume)


def _train(
    stage: Any,  # noqa: ANN401 - these types are heavy to import
    start: Any,  # noqa: ANN401
    files: Any,  # noqa: ANN401
    means: Any,  # noqa: ANN401
    max_bad: float,
    resume: bool,
) -> None:
    """Run a stage, and say what it came to and where it is."""
    from caldera.recipes.from_files import train_on_files

    outcome = train_on_files(stage, start, files, means=means, max_bad=max_bad, resume=resume)
    folder = files.out
    if outcome is None:
        err.print(f"done before: {folder / 'model'}", markup=False)
        return
    err.print(
        f"{outcome.steps} steps in {outcome.seconds:.0f} s "
        f"({outcome.samples_per_second:.1f} conversations/s)"
    )
    if outcome.last_validation_loss is not None:
        err.print(
            f"loss on held-out records: {outcome.first_validation_loss:.3f} -> "
            f"{outcome.last_validation_loss:.3f} nats per token"
        )
    err.print(f"model: {folder / 'model'}", markup=False)
