"""Commands `caldera export` and `caldera parity`: write a model for other programs, and compare the two."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer
from rich.table import Table

from caldera.cli.options import ModelName, Offline, print_message, print_result, stdout_console
from caldera.errors import ParityError, UnknownNameError

if TYPE_CHECKING:
    from caldera.export.parity.compare import Parity

CLASS_TOKEN_HELP = """
gguf: last, for llama.cpp as released since May 2025; first, for a version in which issue 25814 is fixed.
\\[default: last]
"""
ComparedImages = Annotated[
    list[Path] | None,
    typer.Option(
        "--images",
        metavar="FILE",
        help="Image to compare on. Repeatable. \\[default: drawn scenes]",
    ),
]
JsonReport = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the comparison as JSON.")
]


def export(
    model: ModelName,
    to: Annotated[
        str, typer.Option(help="gguf: two files for llama.cpp. original: as in LLaVA's own code.")
    ],
    out_folder: Annotated[Path, typer.Option("--out", help="Folder for the files.")],
    kind: Annotated[
        str | None, typer.Option("--type", help="gguf: f32, f16 or q8_0. \\[default: f16]")
    ] = None,
    class_token: Annotated[str | None, typer.Option(help=CLASS_TOKEN_HELP)] = None,
    images: ComparedImages = None,
    json_file: JsonReport = None,
    offline: Offline = False,
) -> None:
    """Write a model for another program, then compare the two; exit code 8 if they differ.

    [bold]Examples[/bold]

      caldera export runs/demo/model --to gguf --out runs/demo/gguf

      caldera export runs/demo/model --to gguf --out runs/demo/q8 --type q8_0 --images dog.jpg
    """
    from caldera.export.export import ExportConfig, export_model
    from caldera.formats.gguf.vision_tower import ClassToken
    from caldera.formats.gguf.writer import FILE_TYPES
    from caldera.progress import default_progress

    if kind is not None and kind not in FILE_TYPES:
        raise UnknownNameError("type", kind, FILE_TYPES)
    if class_token is not None and class_token not in get_args(ClassToken):
        raise UnknownNameError("position of the class token", class_token, get_args(ClassToken))
    config = ExportConfig(
        folder=model,
        out=out_folder,
        dtype=kind,
        class_token=class_token,  # type: ignore[arg-type] # checked above
        images=images or (),
    )
    report = export_model(to, config, default_progress())
    print_message(f"written: {out_folder}", *(f"note: {note}" for note in report.notes))
    if report.parity is None:
        unwritten = f", so {json_file} is not written" if json_file else ""
        print_message(f"not compared{unwritten}")
        return
    _print_parity(report.parity, json_file)
    if report.known_fault:
        print_message(f"the files in {out_folder} are right, but {report.known_fault}")
        return
    _conclude(report.parity, f"; the files in {out_folder} are kept")


def parity(
    model: ModelName,
    against: Annotated[str, typer.Option(help="transformers, gguf or original.")],
    gguf: Annotated[Path | None, typer.Option(help="Folder of the GGUF files.")] = None,
    original: Annotated[
        Path | None, typer.Option(help="Folder in the layout of LLaVA's own code.")
    ] = None,
    python: Annotated[
        Path | None,
        typer.Option(help="Python that has LLaVA's package llava, to run its own code."),
    ] = None,
    fix_class_token: Annotated[
        bool,
        typer.Option("--fix-class-token", help="Put llama.cpp's class token first while it runs."),
    ] = False,
    images: ComparedImages = None,
    json_file: JsonReport = None,
    offline: Offline = False,
) -> None:
    """Compare a model with another implementation of it: pixels, features, logits and 64 greedy tokens.

    [bold]Examples[/bold]

      caldera parity runs/demo/model --against transformers

      caldera parity runs/demo/model --against gguf --gguf runs/demo/gguf --images dog.jpg

      caldera parity runs/demo/model --against original --original llava-demo --python llava/bin/python
    """
    from caldera.export.export import ParityConfig, compare_model
    from caldera.progress import default_progress

    config = ParityConfig(
        folder=model,
        against=against,
        gguf=gguf,
        original=original,
        python=python,
        fix_class_token=fix_class_token,
        images=images or (),
    )
    result = compare_model(config, default_progress())
    _print_parity(result, json_file)
    _conclude(result)


def _print_parity(parity: "Parity", json_file: Path | None) -> None:
    """Print a comparison, and write it as JSON if asked."""
    from caldera.export.export import parity_json
    from caldera.files.atomic import write_json

    title = f"caldera and {parity.against}"
    table = Table("stage", "largest difference", "limit", "at", "", title=title)
    for stage in parity.stages:
        largest = "yes" if stage.max_difference == float("inf") else f"{stage.max_difference:.3g}"
        verdict = "ok" if stage.good else "differs"
        table.add_row(stage.stage, largest, f"{stage.limit:.3g}", stage.image, verdict)
    equal, total = parity.num_equal
    max_different = (1 - parity.min_equal_answers) * total
    table.add_row("answers", f"{total - equal} of {total}", f"{max_different:.0f}", "", "")
    stdout_console.print(table)
    print_result(*(f"note: {note}" for note in parity.notes))
    for answer in parity.answers:
        print_result(*(f"{answer.image}: {note}" for note in answer.notes))
    if json_file:
        write_json(json_file, parity_json(parity))


def _conclude(parity: "Parity", consequence: str = "") -> None:
    """Print that the other implementation agrees, or raise a ParityError if it differs."""
    if not parity.good:
        raise ParityError(f"{parity.fault}{consequence}")
    equal, total = parity.num_equal
    print_result(
        f"good: {parity.against} agrees with caldera, {equal} of {total} answers are equal"
    )
