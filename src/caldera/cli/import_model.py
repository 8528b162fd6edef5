"""`caldera import`: models from elsewhere come in."""

from pathlib import Path
from typing import Annotated

import typer

from caldera.cli.options import stderr_console, stdout_console
from caldera.errors import UsageError

Source = Annotated[
    Path | None, typer.Argument(help="Folder of a model; none to join --vision and --language.")
]
Out = Annotated[Path | None, typer.Option("--out", help="Model folder that is made. \\[required]")]
Template = Annotated[
    str | None, typer.Option(help="How conversations are written for it, such as vicuna_v1.")
]
Base = Annotated[
    Path | None,
    typer.Option(help="Language model that a projector, an adapter or a delta stands on."),
]
Vision = Annotated[Path | None, typer.Option(help="Vision tower, in transformers' format.")]
Language = Annotated[Path | None, typer.Option(help="Language model to join with --vision.")]
Projector = Annotated[
    str, typer.Option(help="To join them: linear, mlp2x_gelu or a file of one's weights.")
]
Aspect = Annotated[str | None, typer.Option(help="square or pad. \\[default: as the source says]")]
Delta = Annotated[
    bool, typer.Option("--delta", help="The weights are only what changed in --base.")
]
Kind = Annotated[
    str | None,
    typer.Option("--as", help="full, projector or lora, where a folder could be several."),
]
DiskDtype = Annotated[
    str, typer.Option(help="Weights on disk: auto (as they are), float32, float16, bfloat16.")
]


def import_weights(
    source: Source = None,
    out_folder: Out = None,
    template: Template = None,
    base: Base = None,
    vision: Vision = None,
    language: Language = None,
    projector: Projector = "mlp2x_gelu",
    aspect: Aspect = None,
    delta: Delta = False,
    layout: Kind = None,
    dtype: DiskDtype = "auto",
) -> None:
    """Make a caldera model folder of a llava-hf folder, a folder of LLaVA's own code, or two towers.

    [bold]Examples[/bold]

      caldera import llava-1.5-7b-hf --template vicuna_v1 --out models/llava

      caldera import llava-v1.5-7b --vision clip-vit-l --template vicuna_v1 --out models/llava

      caldera import llava-lora --base vicuna-7b --vision clip-vit-l --template vicuna_v1 --out models/llava

      caldera import --vision clip-vit-l --language vicuna-7b --out models/fresh
    """
    if out_folder is None:
        raise UsageError("say with --out where the model folder will stand")
    if delta and layout not in (None, "delta"):
        raise UsageError(f"--delta and --as {layout} contradict each other; give one of them")
    from caldera.formats.importing.import_model import import_model
    from caldera.formats.importing.request import ImportRequest
    from caldera.progress import default_progress

    what = ImportRequest(
        source=source,
        kind="delta" if delta else layout,  # type: ignore[arg-type] # checked when it is built
        base=base,
        vision=vision,
        language=language,
        projector=projector,
        template=template,
        aspect=aspect,  # type: ignore[arg-type] # checked when it is built
        dtype=dtype,
    )
    done = import_model(what, out_folder, default_progress())
    numbers = str(done.dtype).removeprefix("torch.")
    for line in (
        *(f"note: {note}" for note in done.notes),
        f"{done.kind}: {done.tensors} weights, {done.nbytes / 1e9:.2f} GB, {numbers}",
    ):
        stderr_console.print(line, markup=False, highlight=False, soft_wrap=True)
    stdout_console.print(str(out_folder), markup=False, highlight=False, soft_wrap=True)
