"""`caldera data import`: sets that others made become data files."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from caldera.cli.options import MaxBad, stderr_console
from caldera.errors import UnknownNameError

if TYPE_CHECKING:  # heavy
    from caldera.datasets.importers import ImportReport

Answers = Annotated[
    Path | None, typer.Option(help="vqa: file of the annotations, if it is elsewhere.")
]
Find = Annotated[bool, typer.Option("--find/--no-find", help="Look whether each image is there.")]
Form = Annotated[
    str, typer.Option(help="scienceqa: QCM-LEA, QCM-LEPA, QCM-ALE, QCM-A, CQM-A ... or letter.")
]
Kind = Annotated[str, typer.Argument(help="llava, vqa, scienceqa, captions or coco.")]
PerImage = Annotated[
    int, typer.Option(min=0, help="captions, coco: how many of an image; 0 takes all.")
]
Roots = Annotated[
    Path | None,
    typer.Option(help="Folder that the set's image names start from. \\[default: a usual one]"),
]
AskingShort = Annotated[
    str, typer.Option(help="vqa: which questions ask for a short answer: each, first or none.")
]
Split = Annotated[
    str | None, typer.Option(help="vqa: train2014 ...; scienceqa: train ...; coco: train2017 ...")
]


def import_data(
    kind: Kind,
    path: Annotated[Path, typer.Argument(help="File or folder of the set.")],
    out_file: Annotated[Path, typer.Option("--out", help="Data file, .json or .jsonl.")],
    images: Roots = None,
    check_images: Find = True,
    split: Split = None,
    answers: Answers = None,
    prompt_layout: Form = "QCM-LEA",
    answer_prompt: AskingShort = "each",
    per_image: PerImage = 0,
    seed: Annotated[int, typer.Option(help="captions, coco: of the wording of requests.")] = 0,
    max_bad_fraction: MaxBad = 0.0,
) -> None:
    """Write a data file in LLaVA's JSON of what others made. What had to be changed or left out is counted.

    [bold]Examples[/bold]

      caldera data import llava llava_v1_5_mix665k.json --images playground/data --out mix665k.json --max-bad 0.01

      caldera data import vqa vqav2/ --split train2014 --images coco/train2014 --out vqa.json

      caldera data import scienceqa ScienceQA/data/scienceqa --form QCM-LEPA --out scienceqa.json

      caldera data import captions captions.csv --out pretrain.json
    """
    from typing import get_args

    from caldera.datasets.imported import AnswerPromptPlacement, ImportOptions
    from caldera.datasets.importers import import_dataset

    if answer_prompt not in get_args(AnswerPromptPlacement):
        raise UnknownNameError(
            "choice of --sentences", answer_prompt, get_args(AnswerPromptPlacement)
        )
    options = ImportOptions(
        images=images,
        check_exists=check_images,
        split=split,
        answers=answers,
        layout=prompt_layout,
        answer_prompt=answer_prompt,  # type: ignore[arg-type] # checked above
        per_image=per_image,
        seed=seed,
    )
    _tell(import_dataset(kind, path, out_file, options, max_bad_fraction), out_file)


def _tell(report: "ImportReport", out_file: Path) -> None:
    """Say what came of an import."""
    for change, count in report.changes.most_common():
        stderr_console.print(f"changed: {count} x {change}", markup=False, soft_wrap=True)
    stderr_console.print(
        f"{out_file}: {report.conversations} records, {report.turns} turns, {report.images} images, of "
        f"{report.total} met; bad: {report.bad}",
        markup=False,
        soft_wrap=True,
    )
    if report.bad:
        listed = out_file.with_suffix(".bad.jsonl")
        stderr_console.print(
            f"what was left out is listed in {listed}", markup=False, soft_wrap=True
        )
    stderr_console.print(f"next: caldera data check {out_file}", markup=False, soft_wrap=True)
