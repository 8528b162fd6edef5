"""Commands `caldera data import`, `mix`, `balance`, `stats`, `page` and `to-parquet`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from caldera.cli.options import (
    Columns,
    IgnoreField,
    Images,
    ImagesFrom,
    MaxBadFraction,
    Offline,
    check_out_file,
    print_message,
    read_options_from,
    stderr_console,
    stdout_console,
)
from caldera.progress import default_progress

if TYPE_CHECKING:
    from caldera.datasets.registry import ImportReport

AsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]
DataFile = Annotated[Path, typer.Argument(help="Data file, in a format of docs/data.md.")]
OutFile = Annotated[
    Path,
    typer.Option("--out", callback=check_out_file, help="Data file to write, .json or .jsonl."),
]

ImageRoot = Annotated[
    Path | None,
    typer.Option(help="Folder that image names are relative to. \\[default: depends on the set]"),
]
CheckImages = Annotated[
    bool, typer.Option("--check-images/--no-check-images", help="Check that each image exists.")
]
Split = Annotated[
    str | None,
    typer.Option(
        help="vqa: train2014 ...; scienceqa, tables, folders: train ...; coco: train2017 ..."
    ),
]
Answers = Annotated[Path | None, typer.Option(help="vqa: file of the annotations.")]
Layout = Annotated[
    str, typer.Option(help="scienceqa: QCM-LEA, QCM-LEPA, QCM-A, CQM-A ... or letter.")
]
ImporterName = Annotated[
    str,
    typer.Argument(
        help="llava (conversations of any format), vqa, scienceqa, captions, coco or folders (classes of images)."
    ),
]
PerImage = Annotated[int, typer.Option(min=0, help="captions, coco: maximum per image; 0 for all.")]
AnswerPrompt = Annotated[
    str, typer.Option(help="vqa: questions that ask for a short answer: each, first or none.")
]
HoldOut = Annotated[
    str | None,
    typer.Option(
        metavar="N|SPLIT",
        help="folders: images to hold out, a number or a split; questions about them go to OUT.held_out.jsonl.",
    ),
]
QuestionKinds = Annotated[
    str | None,
    typer.Option(help="folders: caption, naming, presence, separated by commas. \\[default: all]"),
]
Phrases = Annotated[
    Path | None,
    typer.Option(
        help='folders: JSON of noun phrases by class, {"longsleeve": "a long-sleeved shirt"}.'
    ),
]
DataSource = Annotated[
    str,
    typer.Argument(
        help="File or folder of the data set, or ORG/NAME\\[@REVISION]\\[:FILE] on the Hugging Face Hub."
    ),
]
ImportSeed = Annotated[
    int, typer.Option(help="captions, coco, folders: seed for wording and held-out images.")
]


def import_data(
    kind: ImporterName,
    source: DataSource,
    out_file: OutFile,
    images: ImageRoot = None,
    images_from: ImagesFrom = None,
    check_images: CheckImages = True,
    split: Split = None,
    answers: Answers = None,
    prompt_layout: Layout = "QCM-LEA",
    answer_prompt: AnswerPrompt = "each",
    columns: Columns = None,
    per_image: PerImage = 0,
    kinds: QuestionKinds = None,
    phrases: Phrases = None,
    hold_out: HoldOut = None,
    seed: ImportSeed = 0,
    ignore_field: IgnoreField = None,
    max_bad_fraction: MaxBadFraction = 0.0,
    offline: Offline = False,
) -> None:
    """Convert a third-party data set to LLaVA's JSON. Fixes and skipped items are counted.

    [bold]Examples[/bold]

      caldera data import llava llava_v1_5_mix665k.json --images playground/data --out mix665k.json
      --max-bad-fraction 0.01

      caldera data import llava liuhaotian/LLaVA-Instruct-150K:llava_instruct_150k.json --images train2017 --out a.json

      caldera data import vqa vqav2/ --split train2014 --images coco/train2014 --out vqa.json

      caldera data import captions captions.csv --out pretrain.json

      caldera data import folders photos --hold-out 300 --out data.json
    """
    from caldera.datasets.importer import ImportOptions
    from caldera.datasets.registry import import_dataset

    reading = read_options_from(images, images_from, ignore_field)
    options = ImportOptions(
        images=images,
        images_from=reading.images_from,
        ignore_fields=reading.ignore_fields,
        check_exists=check_images,
        split=split,
        answers=answers,
        layout=prompt_layout,
        answer_prompt=answer_prompt,  # type: ignore[arg-type] # checked by ImportOptions
        columns=columns,
        per_image=per_image,
        kinds=kinds,
        phrases=phrases,
        hold_out=hold_out,
        seed=seed,
    )
    progress = default_progress()
    _print_import(
        import_dataset(kind, source, out_file, options, max_bad_fraction, progress), out_file
    )


def _print_import(report: "ImportReport", out_file: Path) -> None:
    """Print the counts of an import."""
    print_message(*(f"fixed: {count} x {fix}" for fix, count in report.fixes.most_common()))
    print_message(
        f"{out_file}: {report.conversations} records, {report.turns} turns, {report.images} images, of "
        f"{report.total} in total"
    )
    if report.classes:
        classes = ", ".join(f"{label} {count}" for label, count in report.classes.most_common())
        print_message(f"classes: {classes}; give other words with --phrases")
    if report.held_out:
        print_message(
            f"{report.held_out}: questions about {report.held_out_images} other images, for: caldera evaluate custom"
        )
    print_message(f"next: caldera data check {out_file}")


def mix(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE[:WEIGHT]...", help="Data files; 0.5 samples half, 2 repeats twice."
        ),
    ],
    out_file: OutFile,
    seed: Annotated[int, typer.Option(help="Seed for sampling and order.")] = 0,
    as_json: AsJson = False,
    images_from: ImagesFrom = None,
    ignore_field: IgnoreField = None,
    max_bad_fraction: MaxBadFraction = 0.0,
) -> None:
    """Mix data files, each with a weight, into one, with relative image paths and unique ids.

    [bold]Examples[/bold]

      caldera data mix dialogues.json vqa.json:0.5 scienceqa.json:2 --out mix.json
    """
    from caldera.datasets.mixing import mix_files, parse_weighted_file

    report = mix_files(
        [parse_weighted_file(file) for file in files],
        out_file,
        seed=seed,
        options=read_options_from(None, images_from, ignore_field),
        max_bad_fraction=max_bad_fraction,
    )
    columns = ("source", "weight", "records", "rows", "share", "turns", "images", "no image")
    table = Table(*columns)
    for source in report.sources:
        share = f"{source.rows / report.rows:.1%}"
        counts = (source.rows, share, source.turns, source.images, source.text_only)
        table.add_row(source.source, f"{source.weight:g}", str(source.records), *map(str, counts))
    stderr_console.print(table)
    print_message(f"{out_file}: {report.rows} rows, {report.images} images")
    if as_json:
        stdout_console.print_json(json.dumps(report.as_dict()))
    print_message(f"next: caldera data check {out_file}")


def balance(
    file: Annotated[Path, typer.Argument(help="Data file of stage 1.")],
    out_file: OutFile,
    min_count: Annotated[int, typer.Option(min=1, help="Ignore phrases in fewer answers.")] = 3,
    max_per_phrase: Annotated[int, typer.Option(min=1, help="Maximum answers per phrase.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed for sampling.")] = 0,
    as_json: AsJson = False,
    ignore_field: IgnoreField = None,
    max_bad_fraction: MaxBadFraction = 0.0,
) -> None:
    """Sample captions about frequent objects and keep those about rare ones, as LLaVA did for CC3M-595K.

    [bold]Examples[/bold]

      caldera data balance captions.json --out balanced.json
    """
    from caldera.datasets.balancing import balance_file

    result = balance_file(
        file,
        out_file,
        min_count=min_count,
        max_per_phrase=max_per_phrase,
        seed=seed,
        options=read_options_from(None, None, ignore_field),
        max_bad_fraction=max_bad_fraction,
    )
    table = Table("in records", "phrases", "mentions before", "after")
    for name, *counts in result.by_frequency():
        table.add_row(name, *map(str, counts))
    stderr_console.print(table)
    print_message(f"{out_file}: {len(result.selected)} of {result.total} records")
    if as_json:
        keys = ("records", "phrases", "before", "after")
        bins = [dict(zip(keys, row, strict=True)) for row in result.by_frequency()]
        report = {"records": result.total, "selected": len(result.selected), "bins": bins}
        stdout_console.print_json(json.dumps(report))


def stats(
    file: DataFile,
    page: Annotated[
        Path | None,
        typer.Option(
            "--out", callback=check_out_file, help="HTML page. \\[default: FILE.stats.html]"
        ),
    ] = None,
    as_json: AsJson = False,
    ignore_field: IgnoreField = None,
    max_bad_fraction: MaxBadFraction = 0.0,
) -> None:
    """Write an HTML page of a data file's statistics: lengths, first words of questions, objects.

    [bold]Examples[/bold]

      caldera data stats data.json

      caldera data stats mix.json --out mix.html --json
    """
    from caldera.datasets.importer import skipped_path
    from caldera.datasets.statistics import compute_statistics
    from caldera.datasets.statistics_page import write_statistics_page
    from caldera.files.skipped_items import SkippedItems

    listing = skipped_path(page or file, is_input=True)
    page = page or file.with_suffix(".stats.html")
    skipped = SkippedItems(max_bad_fraction)
    options = read_options_from(None, None, ignore_field)
    statistics = compute_statistics(file, skipped, options)
    write_statistics_page(page, statistics, file.name)
    skipped.finish(statistics.records + statistics.skipped, listing)
    if as_json:
        stdout_console.print_json(json.dumps(statistics.as_dict()))
    print_message(*(f"warning: {item}" for item in statistics.answer_counts.imbalances()))
    print_message(
        f"{statistics.records} records, {len(statistics.images)} images, skipped: {statistics.skipped}; charts in "
        f"{page}"
    )


def page(
    file: DataFile,
    page_file: Annotated[
        Path | None,
        typer.Option(
            "--out", callback=check_out_file, help="HTML page. \\[default: FILE.page.html]"
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option(min=1, help="Maximum number of images, sampled at random.")
    ] = 100,
    seed: Annotated[int, typer.Option(help="Seed for sampling.")] = 0,
    images: Images = None,
    images_from: ImagesFrom = None,
    ignore_field: IgnoreField = None,
    max_bad_fraction: MaxBadFraction = 1.0,
) -> None:
    """Write an HTML page of images next to all their records, to read before training. It lists invalid records.

    [bold]Examples[/bold]

      caldera data page data.json --out data.html

      caldera data page llava_v1_5_mix665k.json --images playground/data --limit 50
    """
    from caldera.datasets.importer import skipped_path
    from caldera.datasets.records_page import write_records_page
    from caldera.files.skipped_items import SkippedItems

    listing = skipped_path(page_file or file, is_input=True)
    page_file = page_file or file.with_suffix(".page.html")
    skipped = SkippedItems(max_bad_fraction)
    options = read_options_from(images, images_from, ignore_field)
    report = write_records_page(file, page_file, skipped, options, limit=limit, seed=seed)
    skipped.finish(report.total + report.skipped, listing)
    print_message(*(f"warning: {item}" for item in report.imbalances))
    print_message(
        f"{page_file}: {report.records} of {report.total} records, {report.images} images, with problems: "
        f"{report.problems}, skipped: {report.skipped}"
    )


def to_parquet(
    file: DataFile,
    out_folder: Annotated[Path, typer.Option("--out", help="Folder for the parquet files.")],
    images: Images = None,
    images_from: ImagesFrom = None,
    ignore_field: IgnoreField = None,
    max_bad_fraction: MaxBadFraction = 0.0,
) -> None:
    """Convert a data file and its images to parquet files for the Hugging Face Hub.

    [bold]Examples[/bold]

      caldera data to-parquet data.json --out hub
    """
    from caldera.datasets.parquet import write_parquet
    from caldera.files.skipped_items import SkippedItems

    skipped = SkippedItems(max_bad_fraction)
    options = read_options_from(images, images_from, ignore_field)
    report = write_parquet(file, out_folder, skipped, options=options)
    print_message(
        f"{out_folder}: {report.rows} rows, {report.images} images, {report.files} files, {report.bytes / 1e6:.1f} MB"
    )
