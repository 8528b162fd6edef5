"""Command `caldera import`: convert third-party models to model folders."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from caldera.cli.options import Offline, print_message, print_result
from caldera.errors import UsageError

if TYPE_CHECKING:
    from caldera.formats.importing.request import ImportRequest

Source = Annotated[
    str | None,
    typer.Argument(
        help="Folder of a model or its name on the Hugging Face Hub; none to join --vision and --language."
    ),
]
OutFolder = Annotated[Path | None, typer.Option("--out", help="Model folder. \\[required]")]
Template = Annotated[
    str | None,
    typer.Option(
        help="Chat template, such as vicuna_v1, if the folder's own is none of caldera's."
    ),
]
Base = Annotated[
    str | None,
    typer.Option(help="Language model of a delta, adapter or projector: a folder or a name."),
]
Vision = Annotated[
    str | None,
    typer.Option(
        help="Vision tower: a packaged one, a folder in transformers' format, or a name on the Hub."
    ),
]
Language = Annotated[str | None, typer.Option(help="Language model to join with --vision.")]
Projector = Annotated[
    str, typer.Option(help="To join them: linear, mlp2x_gelu or a file of projector weights.")
]
Aspect = Annotated[str | None, typer.Option(help="square or pad. \\[default: as in the source]")]
Delta = Annotated[bool, typer.Option("--delta", help="The weights are differences from --base.")]
Layout = Annotated[
    str | None, typer.Option(help="full, projector or lora, for a folder that could be several.")
]
DiskDtype = Annotated[
    str, typer.Option(help="Weights on disk: auto (as they are), float32, float16, bfloat16.")
]
VocabMultiple = Annotated[
    int | None,
    typer.Option(
        help="Fill up the rows of the grown embedding tables to a multiple of this; 1: no more than needed. "
        "\\[default: 64]"
    ),
]


def import_weights(
    source: Source = None,
    out_folder: OutFolder = None,
    template: Template = None,
    base: Base = None,
    vision: Vision = None,
    language: Language = None,
    projector: Projector = "mlp2x_gelu",
    aspect: Aspect = None,
    delta: Delta = False,
    layout: Layout = None,
    dtype: DiskDtype = "auto",
    vocab_multiple: VocabMultiple = None,
    offline: Offline = False,
) -> None:
    """Convert a llava-hf folder, a folder of LLaVA's own code, or two towers to a model folder.

    [bold]Examples[/bold]

      caldera import llava-1.5-7b-hf --template vicuna_v1 --out models/llava

      caldera import llava-v1.5-7b --vision clip-vit-l --template vicuna_v1 --out models/llava

      caldera import llava-lora --base vicuna-7b --vision clip-vit-l --template vicuna_v1 --out models/llava

      caldera import --vision openai/clip-vit-large-patch14-336 --language lmsys/vicuna-7b-v1.5 --out models/fresh
    """
    if out_folder is None:
        raise UsageError("--out is required (the model folder to write)")
    if delta and layout not in (None, "delta"):
        raise UsageError(f"--delta and --layout {layout} contradict each other; give one of them")
    from caldera.formats.importing.import_model import check_new_folder, import_model
    from caldera.formats.importing.request import ImportRequest
    from caldera.progress import default_progress

    names = source, base, vision, language
    paths = [Path(name) if name else None for name in names]
    # The request is checked with the names, before anything is downloaded.
    request = ImportRequest(
        source=paths[0],
        base=paths[1],
        vision=paths[2],
        language=paths[3],
        layout="delta" if delta else layout,  # type: ignore[arg-type] # checked when it is built
        projector=projector,
        template=template,
        aspect=aspect,  # type: ignore[arg-type] # checked when it is built
        dtype=dtype,
        vocab_multiple=vocab_multiple,
    )
    check_new_folder(out_folder)
    with TemporaryDirectory() as work:
        request = _with_folders(request, *names, work=Path(work))
        report = import_model(request, out_folder, default_progress())
    print_message(*(f"note: {note}" for note in report.notes), f"images: {report.images}")
    dtype_name = str(report.dtype).removeprefix("torch.")
    print_message(
        f"{report.layout}: {report.tensors} weights, {report.nbytes / 1e9:.2f} GB, {dtype_name}"
    )
    print_result(str(out_folder))


def _with_folders(
    request: "ImportRequest", source: str | None, *towers: str | None, work: Path
) -> "ImportRequest":
    """Return a request with the folders of its names: downloaded if they are on the Hub, or converted in `work`."""
    from caldera.formats.hub_models import local_folders
    from caldera.recipes.towers import local_towers

    names = source, *towers
    local = [source] if source else []
    folders = iter(local_folders(*local, *local_towers(*filter(None, towers), work=work)))
    paths = [next(folders) if name else None for name in names]
    return replace(request, source=paths[0], base=paths[1], vision=paths[2], language=paths[3])
