"""`caldera import`: models from elsewhere come in."""

from pathlib import Path
from typing import Annotated

import typer

from caldera.cli.options import err, out
from caldera.errors import UsageError


def import_weights(
    source: Annotated[
        Path | None,
        typer.Argument(help="Folder of a model; none to join --vision and --language."),
    ] = None,
    out_folder: Annotated[
        Path | None, typer.Option("--out", help="Model folder that is made. \\[required]")
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(help="How conversations are written for it, such as vicuna_v1."),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(help="Language model that a projector, an adapter or a delta stands on."),
    ] = None,
    vision: Annotated[
        Path | None, typer.Option(help="Vision tower, in transformers' format.")
    ] = None,
    language: Annotated[
        Path | None, typer.Option(help="Language model to join with --vision.")
    ] = None,
    projector: Annotated[
        str, typer.Option(help="To join them: linear, mlp2x_gelu or a file of one's weights.")
    ] = "mlp2x_gelu",
    aspect: Annotated[
        str | None, typer.Option(help="square or pad. \\[default: as the source says]")
    ] = None,
    delta: Annotated[
        bool, typer.Option("--delta", help="The weights are only what changed in --base.")
    ] = False,
    kind: Annotated[
        str | None,
        typer.Option("--as", help="full, projector or lora, where a folder could be several."),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Weights on disk: auto (as they are), float32, float16, bfloat16.")
    ] = "auto",
) -> None:
    """Make a caldera model folder of a llava-hf folder, a folder of LLaVA's own code, or two towers.

    [bold]Examples[/bold]

      caldera import llava-1.5-7b-hf --template vicuna_v1 --out models/llava

      caldera import llava-v1.5-7b --vision clip-vit-large-patch14-336 --template vicuna_v1 --out models/llava

      caldera import llava-v1.5-7b-lora --base vicuna-7b-v1.5 --vision clip-vit-large-patch14-336 --template vicuna_v1 --out models/llava

      caldera import --vision clip-vit-large-patch14-336 --language vicuna-7b-v1.5 --out models/fresh
    """
    if out_folder is None:
        raise UsageError("say with --out where the model folder will stand")
    if delta and kind not in (None, "delta"):
        raise UsageError(f"--delta and --as {kind} contradict each other; give one of them")
    from caldera.progress import choose_progress
    from caldera.recipes.import_request import Import
    from caldera.recipes.importing import import_model

    what = Import(
        source=source,
        kind="delta" if delta else kind,  # type: ignore[arg-type] # checked when it is built
        base=base,
        vision=vision,
        language=language,
        projector=projector,
        template=template,
        aspect=aspect,  # type: ignore[arg-type] # checked when it is built
        dtype=dtype,
    )
    done = import_model(what, out_folder, choose_progress())
    for note in done.notes:
        err.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    kind_of_numbers = str(done.dtype).removeprefix("torch.")
    err.print(
        f"{done.kind}: {done.tensors} weights, {done.nbytes / 1e9:.2f} GB, {kind_of_numbers}",
        markup=False,
        highlight=False,
    )
    out.print(str(out_folder), markup=False, highlight=False, soft_wrap=True)
