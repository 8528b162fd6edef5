"""`caldera export` and `caldera parity`: a model for other programs, and whether it is the same there."""

from pathlib import Path
from typing import Annotated, Any

import typer

from caldera.cli.options import stderr_console, stdout_console

Shown = Annotated[
    list[Path] | None,
    typer.Option(
        "--images",
        metavar="FILE",
        help="Image to compare on; many times. \\[default: drawn scenes]",
    ),
]
Report = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the comparison as JSON.")
]


def export(
    model: Annotated[Path, typer.Argument(help="Model folder.")],
    to: Annotated[
        str,
        typer.Option(
            help="gguf: two files for llama.cpp. original: the layout of LLaVA's own code."
        ),
    ],
    out_folder: Annotated[Path, typer.Option("--out", help="Folder for the files.")],
    kind: Annotated[
        str | None, typer.Option("--type", help="gguf: f32, f16 or q8_0. \\[default: f16]")
    ] = None,
    class_token: Annotated[
        str | None,
        typer.Option(
            help="gguf: last, for llama.cpp as released since May 2025; first, for one in which issue 25814 is "
            "mended. \\[default: last]"
        ),
    ] = None,
    images: Shown = None,
    json_file: Report = None,
) -> None:
    """Write a model for another program, then compare the two; exit code 8 if they differ.

    [bold]Examples[/bold]

      caldera export runs/demo/model --to gguf --out runs/demo/gguf

      caldera export runs/demo/model --to gguf --out runs/demo/q8 --type q8_0 --images dog.jpg
    """
    from typing import get_args

    from caldera.errors import UnknownNameError
    from caldera.export.export import ExportConfig, export_model
    from caldera.formats.gguf.vision_tower import ClassToken
    from caldera.formats.gguf.writer import FILE_TYPES
    from caldera.progress import default_progress

    if kind is not None and kind not in FILE_TYPES:
        raise UnknownNameError("type", kind, FILE_TYPES)
    if class_token is not None and class_token not in get_args(ClassToken):
        raise UnknownNameError("place of the class token", class_token, get_args(ClassToken))
    wanted = ExportConfig(
        folder=model,
        out=out_folder,
        kind=kind,
        class_token=class_token,  # type: ignore[arg-type] # checked above
        images=images or (),
    )
    found = export_model(to, wanted, default_progress())
    stderr_console.print(f"written: {out_folder}", markup=False)
    for note in found.notes:
        stderr_console.print(f"note: {note}", markup=False, soft_wrap=True)
    if found.parity is None:
        unwritten = f", so {json_file} is not written" if json_file else ""
        stderr_console.print(
            f"not compared: nothing here runs the format {to!r}{unwritten}", markup=False
        )
    else:
        _conclude(found.parity, json_file, f"; the files in {out_folder} are kept")


def parity(
    model: Annotated[Path, typer.Argument(help="Model folder.")],
    against: Annotated[str, typer.Option(help="transformers or gguf.")],
    gguf: Annotated[Path | None, typer.Option(help="Folder of the GGUF files.")] = None,
    fix_class_token: Annotated[
        bool, typer.Option("--mend", help="Put llama.cpp's class token first while it runs.")
    ] = False,
    images: Shown = None,
    json_file: Report = None,
) -> None:
    """Compare a model with another implementation of it: pixels, features, logits and 64 greedy tokens.

    [bold]Examples[/bold]

      caldera parity runs/demo/model --against transformers

      caldera parity runs/demo/model --against gguf --gguf runs/demo/gguf --images dog.jpg
    """
    from caldera.export.export import ParityConfig, compare_model
    from caldera.progress import default_progress

    wanted = ParityConfig(
        folder=model, against=against, gguf=gguf, mend=fix_class_token, images=images or ()
    )
    _conclude(compare_model(wanted, default_progress()), json_file, "")


def _conclude(
    found: Any,  # noqa: ANN401 - its type is heavy to import
    json_file: Path | None,
    kept: str,
) -> None:
    """Print a comparison, and end with an error if it is not good.

    Raises:
        ParityError: The other implementation differs.
    """
    from rich.table import Table

    from caldera.errors import ParityError
    from caldera.export.export import parity_json
    from caldera.files.atomic import write_json

    table = Table(
        "stage", "largest difference", "limit", "at", "", title=f"caldera and {found.against}"
    )
    for gap in found.gaps:
        shown = "yes" if gap.largest == float("inf") else f"{gap.largest:.3g}"
        table.add_row(
            gap.stage, shown, f"{gap.limit:.3g}", gap.where, "ok" if gap.good else "differs"
        )
    equal, total = found.counted
    table.add_row(
        "answers", f"{total - equal} of {total}", f"{(1 - found.wanted) * total:.0f}", "", ""
    )
    stdout_console.print(table)
    lines = [f"note: {note}" for note in found.notes]
    for answer in found.answers:
        lines += [f"{answer.image}: {note}" for note in answer.notes]
    for line in lines:
        stdout_console.print(line, markup=False, highlight=False, soft_wrap=True)
    if json_file:
        write_json(json_file, parity_json(found))
    if not found.good:
        raise ParityError(f"not good: {found.fault}{kept}")
    stdout_console.print(
        f"good: {found.against} gives what caldera gives, {equal} of {total} answers equal"
    )
