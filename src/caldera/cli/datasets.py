"""Import, mix, balance, stats, export."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from caldera.cli.options import IgnoreField, Images, MaxBad, stderr_console, stdout_console
from caldera.errors import UnknownNameError

if TYPE_CHECKING:
    from caldera.datasets.registry import ImportReport

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

    from caldera.datasets.importer import AnswerPromptPlacement, ImportOptions
    from caldera.datasets.registry import import_dataset

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


AsJson = Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")]
OutFile = Annotated[Path, typer.Option("--out", help="Data file, .json or .jsonl.")]


def mix(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE[:WEIGHT]...", help="Data files; 0.5 draws half, 2 takes twice."
        ),
    ],
    out_file: OutFile,
    seed: Annotated[int, typer.Option(help="Of what is drawn, and of the order.")] = 0,
    as_json: AsJson = False,
    ignore_field: IgnoreField = None,
    max_bad_fraction: MaxBad = 0.0,
) -> None:
    """Mix data files, each with a weight, into one; images are found from its place, ids are unique.

    [bold]Examples[/bold]

      caldera data mix dialogues.json vqa.json:0.5 scienceqa.json:2 --out mix.json
    """
    import json

    from caldera.datasets.mixing import mix_files, parse_weighted_file

    ingredients = [parse_weighted_file(file) for file in files]
    report = mix_files(
        ingredients,
        out_file,
        seed=seed,
        ignore=frozenset(ignore_field or ()),
        max_bad=max_bad_fraction,
    )
    columns = ("source", "weight", "records", "rows", "share", "turns", "images", "no image")
    table = Table(*columns)
    for one in report.sources:
        share = f"{one.rows / report.written:.1%}"
        numbers = (one.rows, share, one.turns, one.images, one.text_only)
        table.add_row(one.source, f"{one.weight:g}", str(one.records), *map(str, numbers))
    stderr_console.print(table)
    said = f"{out_file}: {report.written} rows, {report.images} images"
    stderr_console.print(said, markup=False, soft_wrap=True)
    if bad := sum(one.bad for one in report.sources):
        listed = out_file.with_suffix(".bad.jsonl")
        stderr_console.print(
            f"{bad} bad records are listed in {listed}", markup=False, soft_wrap=True
        )
    if as_json:
        stdout_console.print_json(json.dumps(report.as_dict()))
    stderr_console.print(f"next: caldera data check {out_file}", markup=False, soft_wrap=True)


def balance(
    file: Annotated[Path, typer.Argument(help="Data file, .json or .jsonl, as of stage 1.")],
    out_file: OutFile,
    min_count: Annotated[
        int, typer.Option(min=1, help="Phrases in fewer answers are passed over.")
    ] = 3,
    max_per_phrase: Annotated[
        int, typer.Option(min=1, help="Of answers with a phrase, so many are drawn for it.")
    ] = 100,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    as_json: AsJson = False,
    ignore_field: IgnoreField = None,
    max_bad_fraction: MaxBad = 0.0,
) -> None:
    """Thin out captions about frequent things and keep those about rare ones, as LLaVA did for CC3M-595K.

    [bold]Examples[/bold]

      caldera data balance captions.json --out balanced.json
    """
    import json

    from caldera.datasets.balancing import balance_file

    done = balance_file(
        file,
        out_file,
        least=min_count,
        most=max_per_phrase,
        seed=seed,
        ignore=frozenset(ignore_field or ()),
        max_bad=max_bad_fraction,
    )
    table = Table("in records", "phrases", "mentions before", "after")
    for name, *counts in done.by_frequency():
        table.add_row(name, *map(str, counts))
    stderr_console.print(table)
    said = f"{out_file}: {len(done.kept)} of {done.total} records"
    stderr_console.print(said, markup=False, soft_wrap=True)
    if done.bad:
        listed = out_file.with_suffix(".bad.jsonl")
        stderr_console.print(
            f"{done.bad} bad records are listed in {listed}", markup=False, soft_wrap=True
        )
    if as_json:
        keys = ("records", "phrases", "before", "after")
        bands = [dict(zip(keys, row, strict=True)) for row in done.by_frequency()]
        figures = {"records": done.total, "kept": len(done.kept), "bands": bands}
        stdout_console.print_json(json.dumps(figures))


def stats(
    file: Annotated[Path, typer.Argument(help="Data file, .json or .jsonl.")],
    page: Annotated[
        Path | None, typer.Option("--out", help="HTML page. \\[default: FILE.stats.html]")
    ] = None,
    as_json: AsJson = False,
    ignore_field: IgnoreField = None,
    max_bad_fraction: MaxBad = 0.0,
) -> None:
    """Draw what a data file is made of on one HTML page: lengths, how questions begin, objects.

    [bold]Examples[/bold]

      caldera data stats data.json

      caldera data stats mix.json --out mix.html --json
    """
    import json

    from caldera.datasets.statistics import compute_statistics
    from caldera.datasets.statistics_page import write_stats
    from caldera.files.skipped import SkippedItems

    written = page or file.with_suffix(".stats.html")
    figures = compute_statistics(
        file, SkippedItems(max_bad_fraction), frozenset(ignore_field or ())
    )
    write_stats(written, figures, file.name)
    if as_json:
        stdout_console.print_json(json.dumps(figures.as_dict()))
    stderr_console.print(
        f"{figures.records} records, {len(figures.images)} images, bad: {figures.bad}; drawn in {written}",
        markup=False,
        soft_wrap=True,
    )


def export(
    file: Annotated[Path, typer.Argument(help="Data file, .json or .jsonl.")],
    parquet: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Write parquet files for the Hub here.")
    ],
    images: Images = None,
    ignore_field: IgnoreField = None,
    max_bad_fraction: MaxBad = 0.0,
) -> None:
    """Write a data file and its images for other programs.

    [bold]Examples[/bold]

      caldera data export data.json --parquet hub/data
    """
    from caldera.datasets.parquet import write_parquet
    from caldera.files.skipped import SkippedItems

    skips = SkippedItems(max_bad_fraction)
    ignored = frozenset(ignore_field or ())
    done = write_parquet(file, parquet, skips, images=images, ignore=ignored)
    said = f"{parquet}: {done.rows} rows, {done.images} shown images, {done.files} files, {done.bytes / 1e6:.1f} MB"
    stderr_console.print(said, markup=False, soft_wrap=True)
    if skips.items:
        listed = parquet.with_suffix(".bad.jsonl")
        skips.write(listed)
        stderr_console.print(
            f"what was left out is listed in {listed}", markup=False, soft_wrap=True
        )
