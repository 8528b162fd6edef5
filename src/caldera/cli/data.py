"""`caldera data ...`: write, check and look at instruction data."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from caldera.cli import teachers as options
from caldera.cli.options import IgnoreField, Images, MaxBad, stderr_console, stdout_console
from caldera.errors import OutputError

app = typer.Typer(no_args_is_help=True, help="Write, check and look at instruction data.")


Teacher = Annotated[
    str, typer.Option(help="Who writes: scripted, openai (any compatible server) or replay.")
]
Kinds = Annotated[
    str | None,
    typer.Option(
        help="Kinds, with shares if you like: conversation,detail:0.5. Of: caption, conversation, detail, "
        "reasoning, vqa, context. Without shares a language model keeps LLaVA's mix, 58:23:77. "
        "\\[default: conversation,detail,reasoning,context; for pairs: caption]"
    ),
]


@app.command()
def generate(
    source: Annotated[str, typer.Argument(help="coco (a folder) or pairs (a file).")],
    path: Annotated[Path, typer.Argument(help="The annotations.")],
    out_file: Annotated[Path, typer.Option("--out", help="Data file, .json or .jsonl.")],
    teacher: Teacher = "scripted",
    kinds: Kinds = None,
    split: Annotated[str | None, typer.Option(help="COCO split, such as train2017.")] = None,
    images: Images = None,
    seed: Annotated[int, typer.Option(help="Of the choice of words.")] = 0,
    max_bad_fraction: MaxBad = 0.0,
    ignore_field: IgnoreField = None,
    model: options.Model = "",
    base_url: options.BaseUrl = "",
    api_key_env: options.KeyVariable = "OPENAI_API_KEY",
    prompts: options.Prompts = None,
    language: options.Language = "english",
    price: options.Price = None,
    no_price: options.Unpriced = False,
    max_cost: options.MaxCost = None,
    max_requests: options.MaxRequests = None,
    allow_changed_run: options.AllowMixed = False,
    dry_run: options.DryRun = False,
    replay_from: options.Recorded = None,
    settings: options.SetSending = None,
) -> None:
    """Write instruction data about annotated images, in LLaVA's JSON.

    [bold]Examples[/bold]

      caldera data generate coco photos/ --out data.json

      caldera data generate pairs captions.csv --out pretrain.json

      caldera data generate coco photos/ --teacher openai --base-url http://127.0.0.1:8000/v1 --model qwen --price 0,0
      --out data.json
    """
    from caldera.annotations.sources import SourceOptions
    from caldera.instructions.from_files import GenerateConfig

    teaching = options.llm_teacher_from(
        teacher, api_key_env, price, settings,
        base_url=base_url, model=model, prompts=prompts, language=language, unpriced=no_price, max_cost=max_cost,
        max_requests=max_requests, allow_mixed=allow_changed_run, recorded=replay_from,
    )  # fmt: skip
    read = SourceOptions(split=split, images=images, ignore_fields=frozenset(ignore_field or ()))
    order = GenerateConfig(
        source=source, path=path, options=read, teacher=teacher, teaching=teaching, kinds=kinds, seed=seed,
        max_bad=max_bad_fraction,
    )  # fmt: skip
    if dry_run:
        options.print_estimate(order, teaching)
    else:
        _generate(order, out_file)


def _generate(order: Any, out_file: Path) -> None:  # noqa: ANN401 - its type is heavy to import
    """Write a data file, and tell what is in it and what is not."""
    from caldera.instructions.from_files import generate_data
    from caldera.progress import default_progress

    written = generate_data(order, out_file, default_progress())
    table = Table("kind", "dialogues", title=f"{out_file}")
    for kind, count in written.by_kind.items():
        table.add_row(kind, str(count))
    stderr_console.print(table)
    for reason, count in written.rejected.most_common():
        stderr_console.print(f"not written: {count} x {reason}", markup=False, soft_wrap=True)
    if order.teaching and written.rejected:
        lists = out_file.with_suffix(".run")
        told = f"each of them: {lists}/refused.jsonl, {lists}/failed.jsonl"
        stderr_console.print(told, markup=False, soft_wrap=True)
    stderr_console.print(f"next: caldera data check {out_file}", markup=False, soft_wrap=True)


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="Data file, .json or .jsonl.")],
    images: Images = None,
    decode_images: Annotated[
        bool, typer.Option("--open/--no-open", help="Decode every image, or only find it.")
    ] = True,
    ignore_field: IgnoreField = None,
    max_bad_fraction: MaxBad = 0.0,
) -> None:
    """Check every record and every image of a data file; exit code 3 if something is wrong.

    [bold]Examples[/bold]

      caldera data check data.json

      caldera data check mix665k.json --images playground/data --ignore-field model
    """
    from caldera.batches.checking import validate_file
    from caldera.progress import default_progress
    from caldera.skips import SkippedItems

    findings = validate_file(
        file,
        images or file.parent,
        open_images=decode_images,
        ignore=frozenset(ignore_field or ()),
        progress=default_progress(),
    )
    stderr_console.print(
        f"{findings.records} records, {findings.turns} turns, {len(findings.images)} images; "
        f"{findings.multi_image} records show several, {findings.text_only} none; {findings.repeated_ids} share an id; "
        f"bad: {len(findings.bad)}",
        soft_wrap=True,
    )
    if findings.bad:
        for fault in findings.bad[:20]:
            stderr_console.print(f"{fault.location}: {fault.reason}", markup=False, soft_wrap=True)
        bad_file = file.with_suffix(".bad.jsonl")
        try:
            SkippedItems(1.0, findings.bad).write(bad_file)
            stderr_console.print(
                f"all of them are listed in {bad_file}", markup=False, soft_wrap=True
            )
        except OutputError as error:  # what was asked for is the check
            stderr_console.print(f"not listed: {error}", markup=False, soft_wrap=True)
        SkippedItems(max_bad_fraction, findings.bad).raise_if_over_limit(findings.records)


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="Data file, .json or .jsonl.")],
    record: Annotated[str, typer.Option(help="Id or number (from 0) of the record.")] = "0",
    model: Annotated[
        Path | None, typer.Option(help="Model folder. \\[default: the shipped backbones]")
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="A name of docs/templates.md. \\[default: the model's]")
    ] = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="Show a line for each token.")] = False,
    images: Images = None,
    ignore_field: IgnoreField = None,
) -> None:
    """Show what the model sees of one record: text, image slots, and what it learns to say, in green or [[...]].

    [bold]Examples[/bold]

      caldera data inspect data.json --record 3

      caldera data inspect data.json --model runs/demo/model --tokens
    """
    from caldera.recipes.inspecting import inspect_record

    surplus = frozenset(ignore_field or ())
    seen = inspect_record(file, record, model, template, surplus, images)
    colored = stdout_console.color_system is not None and not stdout_console.no_color
    styles = {"given": "dim", "learned": "bold green", "image": "bold magenta"}
    for stretch in seen.stretches:
        shown = stretch.text
        if stretch.look == "image":
            shown = f"<{stretch.text}: {stretch.tokens} tokens>"
        elif stretch.look == "learned" and not colored:
            shown = f"[[{stretch.text}]]"
        stdout_console.print(
            shown, style=styles[stretch.look], end="", markup=False, highlight=False, soft_wrap=True
        )
    stdout_console.print()
    learned = sum(one.tokens for one in seen.stretches if one.look == "learned")
    stderr_console.print(
        f"record {seen.id}, template {seen.template}: {sum(one.tokens for one in seen.stretches)} tokens, "
        f"{learned} of them learned ({'green' if colored else 'in [[ ]]'})",
        markup=False,
        soft_wrap=True,
    )
    if tokens:
        table = Table("position", "id", "token", "learned")
        for row in seen.tokens:
            table.add_row(
                str(row.position), str(row.id), repr(row.text), "yes" if row.learned else ""
            )
        stdout_console.print(table)
